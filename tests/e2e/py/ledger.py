#!/usr/bin/python3
"""A ledger on SQLite in WAL mode that is moved between directories:
ledger.py run FILE WITNESS STOP PID   or   ledger.py check FILE WITNESS

`run` commits one number after the other, each one more than the last in the database, and notes in WITNESS, which is no
part of the data, what was committed. It ends when STOP appears, or its own directories are gone. `check` opens a
copy, asks for its integrity, wants all numbers without a hole, and every one that the witness has; it prints the last."""
import os
import sqlite3
import sys
import time


def connect(path):
    db = sqlite3.connect(path, isolation_level=None, timeout=10)
    db.execute("pragma journal_mode = wal").fetchone()
    return db


def run(path, witness, stop, pid):
    with open(pid + ".new", "w") as f:
        f.write(str(os.getpid()))
    os.rename(pid + ".new", pid)
    db = connect(path)
    db.execute("pragma synchronous = normal")
    db.execute("pragma wal_autocheckpoint = 20")
    db.execute("create table if not exists entry (n integer primary key, filler blob)")
    n = db.execute("select coalesce(max(n), 0) from entry").fetchone()[0]
    with open(witness, "ab", buffering=0) as seen:
        end = time.monotonic() + 300
        while time.monotonic() < end and not os.path.exists(stop) and os.path.exists(witness):
            n += 1
            db.execute("insert into entry values (?, randomblob(500))", (n,))
            seen.write(b"%d\n" % n)
            time.sleep(0.002)
    db.close()
    os.unlink(pid)


def check(path, witness):
    db = connect(path)
    verdict = db.execute("pragma integrity_check").fetchall()
    if verdict != [("ok",)]:
        sys.exit("integrity_check: %r" % verdict[:5])
    count, last = db.execute("select count(*), coalesce(max(n), 0) from entry").fetchone()
    numbers = [int(line) for line in open(witness) if line.endswith("\n")]
    if count != last:
        sys.exit("%d entries up to %d" % (count, last))
    if numbers and max(numbers) > last:
        sys.exit("lost: %d was committed, the last one here is %d" % (max(numbers), last))
    if sorted(numbers) != numbers or len(set(numbers)) != len(numbers):
        sys.exit("a number was committed twice: a line was left and taken up again")
    print(last)


if sys.argv[1] == "run":
    run(*sys.argv[2:])
else:
    check(*sys.argv[2:])
