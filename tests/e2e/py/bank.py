#!/usr/bin/python3
"""A bank on SQLite: bank.py run wal|delete FILE SECONDS   or   bank.py check FILE

`run` moves money between accounts until the time is over or it is killed; the sum never changes, and
`moves` counts what was committed. Beside the database it keeps the number of the move that was begun last
and of the one that was committed last, so that begun >= moves >= committed >= begun - 1 in every state that ever
existed. `check` opens a copy, asks for its integrity, its sum and those numbers, and prints the number of
moves that it holds."""
import os
import random
import sqlite3
import sys
import time

ACCOUNTS = 100
START = 1000


def connect(path):
    return sqlite3.connect(path, isolation_level=None, timeout=10)


def beside(path):
    return [os.path.join(os.path.dirname(path), name) for name in ["aa-begun", "zz-committed"]]


def put(fd, n):
    os.pwrite(fd, b"%020d" % n, 0)


def run(mode, path, seconds):
    begun, committed = [os.open(p, os.O_RDWR | os.O_CREAT, 0o644) for p in beside(path)]
    put(begun, 0)
    put(committed, 0)
    db = connect(path)
    db.execute("pragma journal_mode = %s" % mode).fetchone()
    db.execute("pragma synchronous = normal")
    db.execute("pragma wal_autocheckpoint = 50")
    db.execute("begin")
    db.execute("create table if not exists account (id integer primary key, balance integer, note blob)")
    db.execute("create table if not exists moves (n integer)")
    if not db.execute("select count(*) from account").fetchone()[0]:
        for i in range(ACCOUNTS):
            db.execute("insert into account values (?, ?, randomblob(300))", (i, START))
        db.execute("insert into moves values (0)")
    db.execute("commit")
    end = time.monotonic() + seconds
    rng = random.Random(3)
    busy = n = 0
    while time.monotonic() < end:
        n += 1
        put(begun, n)
        a, b, amount = rng.randrange(ACCOUNTS), rng.randrange(ACCOUNTS), rng.randrange(50)
        db.execute("begin immediate")
        db.execute("update account set balance = balance - ?, note = randomblob(300) where id = ?", (amount, a))
        db.execute("update account set balance = balance + ?, note = randomblob(300) where id = ?", (amount, b))
        db.execute("update moves set n = n + 1")
        db.execute("commit")
        put(committed, n)
        # Now and then it does not rest for many transactions.
        busy = busy - 1 if busy else 200 if rng.random() < 0.03 else 0
        if not busy:
            time.sleep(rng.random() * 0.02)


def check(path):
    db = connect(path)
    verdict = db.execute("pragma integrity_check").fetchall()
    if verdict != [("ok",)]:
        sys.exit("integrity_check: %r" % verdict[:5])
    count, total = db.execute("select count(*), sum(balance) from account").fetchone()
    if (count, total) != (ACCOUNTS, ACCOUNTS * START):
        sys.exit("%r accounts with %r" % (count, total))
    moves = db.execute("select n from moves").fetchone()[0]
    begun, committed = [int(open(p).read()) for p in beside(path)]
    if not begun >= moves >= committed >= begun - 1:
        sys.exit("not an instant: begun %d, in the database %d, committed %d" % (begun, moves, committed))
    print(moves)


if sys.argv[1] == "run":
    run(sys.argv[2], sys.argv[3], float(sys.argv[4]))
else:
    check(sys.argv[2])
