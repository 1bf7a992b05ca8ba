#!/usr/bin/python3
"""A bank on one Redis, and counters over two:
redis_load.py load PORT_A PORT_B SECONDS   or   redis_load.py check PORT_A PORT_B

Each move of money is one MULTI on A. Counter `ab` goes up on A, then on B, counter `ba` on B, then on A;
each step waits for the answer before. So in every state that ever existed the first is the second or one
more. `check` fails when money is missing or a counter says otherwise, and prints the number of moves."""
import random
import socket
import sys
import time

ACCOUNTS = 50


class Redis:
    def __init__(self, port):
        self.sock = socket.create_connection(("127.0.0.1", port), timeout=30)
        self.file = self.sock.makefile("rb")

    def send(self, *words):
        out = b"*%d\r\n" % len(words)
        for w in words:
            w = str(w).encode()
            out += b"$%d\r\n%s\r\n" % (len(w), w)
        self.sock.sendall(out)

    def reply(self):
        line = self.file.readline().rstrip(b"\r\n")
        kind, rest = line[:1], line[1:]
        if kind == b"-":
            raise RuntimeError(rest)
        if kind == b"*":
            return [self.reply() for _ in range(int(rest))]
        if kind == b"$":
            if rest == b"-1":
                return None
            data = self.file.read(int(rest) + 2)
            return data[:-2]
        if not kind:
            raise EOFError
        return rest

    def ask(self, *words):
        self.send(*words)
        return self.reply()

    def number(self, key):
        return int(self.ask("GET", key) or 0)


def load(a, b, seconds):
    a, b = Redis(a), Redis(b)
    if a.ask("GET", "moves") is None:
        a.ask("MSET", *[x for i in range(ACCOUNTS) for x in ("a%d" % i, 1000)], "moves", 0)
    rng = random.Random(5)
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        # Between two instants a little apart there is nearly always a step; now and then there is no rest at all.
        for _ in range(rng.randrange(1, 4) if rng.random() < 0.95 else 500):
            a.ask("INCR", "ab")
            b.ask("INCR", "ab")
            b.ask("INCR", "ba")
            a.ask("INCR", "ba")
        n = rng.randrange(500)
        for words in [
            ("MULTI",),
            ("DECRBY", "a%d" % rng.randrange(ACCOUNTS), n),
            ("INCRBY", "a%d" % rng.randrange(ACCOUNTS), n),
            ("INCR", "moves"),
            ("SET", "note%d" % rng.randrange(1000), "x" * rng.randrange(400)),
            ("EXEC",),
        ]:
            a.ask(*words)
        if rng.random() < 0.004:
            try:
                rng.choice([a, b]).ask("BGREWRITEAOF")
            except RuntimeError:
                pass
        time.sleep(rng.random() * 0.01)


def loaded(port):
    r = Redis(port)
    end = time.monotonic() + 30
    while b"\nloading:0" not in r.ask("INFO", "persistence"):
        if time.monotonic() > end:
            sys.exit("it does not finish loading")
        time.sleep(0.02)
    return r


def check(a, b):
    a, b = loaded(a), loaded(b)
    total = sum(int(v) for v in a.ask("MGET", *["a%d" % i for i in range(ACCOUNTS)]))
    if total != ACCOUNTS * 1000:
        sys.exit("the accounts hold %d" % total)
    for key, first, second in [("ab", a, b), ("ba", b, a)]:
        ahead, behind = first.number(key), second.number(key)
        if not 0 <= ahead - behind <= 1:
            sys.exit("counter %s: %d where it goes up first, %d where it goes up second" % (key, ahead, behind))
    print(a.number("moves"))


if sys.argv[1] == "load":
    load(int(sys.argv[2]), int(sys.argv[3]), float(sys.argv[4]))
else:
    check(int(sys.argv[2]), int(sys.argv[3]))
