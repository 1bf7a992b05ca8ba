#!/usr/bin/python3
"""A bank on Redis: redis_load.py load PORT SECONDS   or   redis_load.py check PORT

Each move is one MULTI; `check` prints the number of moves and fails when money is missing."""
import random
import socket
import sys
import time

ACCOUNTS = 50


class Redis:
    def __init__(self, port):
        self.sock = socket.create_connection(("127.0.0.1", port), timeout=10)
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


def load(port, seconds):
    r = Redis(port)
    if r.ask("GET", "moves") is None:
        r.ask("MSET", *[x for i in range(ACCOUNTS) for x in ("a%d" % i, 1000)], "moves", 0)
    rng = random.Random(5)
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        n = rng.randrange(500)
        for words in [
            ("MULTI",),
            ("DECRBY", "a%d" % rng.randrange(ACCOUNTS), n),
            ("INCRBY", "a%d" % rng.randrange(ACCOUNTS), n),
            ("INCR", "moves"),
            ("SET", "note%d" % rng.randrange(1000), "x" * rng.randrange(400)),
            ("EXEC",),
        ]:
            r.ask(*words)
        if rng.random() < 0.002:
            try:
                r.ask("BGREWRITEAOF")
            except RuntimeError:
                pass
        time.sleep(rng.random() * 0.01)


def check(port):
    r = Redis(port)
    end = time.monotonic() + 10
    while b"loading:0" not in r.ask("INFO", "persistence"):
        if time.monotonic() > end:
            sys.exit("it does not finish loading")
        time.sleep(0.02)
    total = sum(int(v) for v in r.ask("MGET", *["a%d" % i for i in range(ACCOUNTS)]))
    if total != ACCOUNTS * 1000:
        sys.exit("the accounts hold %d" % total)
    print(r.ask("GET", "moves").decode())


if sys.argv[1] == "load":
    load(int(sys.argv[2]), float(sys.argv[3]))
else:
    check(int(sys.argv[2]))
