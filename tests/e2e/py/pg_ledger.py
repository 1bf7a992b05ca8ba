#!/usr/bin/python3
"""A ledger beside PostgreSQL: pg_ledger.py SOCKET_DIR PORT DIR SECONDS

Number n goes into DIR/aa-begun, is committed in database one, then in database two, and goes into
DIR/zz-acked once both commits were acknowledged. So in every state that ever existed
begun >= one >= two >= acked >= begun - 1, whatever the names are sorted by. A second connection makes
checkpoints, so that data files and log are never in step for long."""
import os
import socket
import struct
import sys
import threading
import time


class Session:
    """Just enough of the protocol: trust, and one simple query at a time."""

    def __init__(self, where, port, database):
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(60)
        self.sock.connect("%s/.s.PGSQL.%s" % (where, port))
        self.file = self.sock.makefile("rb")
        words = b"user\0postgres\0database\0%s\0\0" % database.encode()
        self.sock.sendall(struct.pack("!II", 8 + len(words), 196608) + words)
        self.ready()

    def ready(self):
        while True:
            kind = self.file.read(1)
            if not kind:
                raise EOFError
            body = self.file.read(struct.unpack("!I", self.file.read(4))[0] - 4)
            if kind == b"E":
                raise RuntimeError(body)
            if kind == b"Z":
                return

    def ask(self, text):
        text = text.encode() + b"\0"
        self.sock.sendall(b"Q" + struct.pack("!I", 4 + len(text)) + text)
        self.ready()


def checkpoints(session, end):
    while time.monotonic() < end:
        session.ask("checkpoint")
        time.sleep(0.3)


def main():
    where, port, directory, seconds = sys.argv[1:]
    end = time.monotonic() + float(seconds)
    admin = Session(where, port, "postgres")
    sessions = []
    for name in ["one", "two"]:
        admin.ask("create database %s" % name)
        sessions.append(Session(where, port, name))
        sessions[-1].ask("create table last (n bigint); insert into last values (0)")
        sessions[-1].ask("create table entry (n bigint primary key, filler text)")
    threading.Thread(target=checkpoints, args=(admin, end), daemon=True).start()
    files = []
    for name in ["aa-begun", "zz-acked"]:
        files.append(os.open(os.path.join(directory, name), os.O_RDWR | os.O_CREAT, 0o644))
        os.pwrite(files[-1], b"%020d\n" % 0, 0)
    n = 0
    while time.monotonic() < end:
        n += 1
        os.pwrite(files[0], b"%020d\n" % n, 0)
        for session in sessions:
            session.ask(
                "begin; update last set n = %d; insert into entry values (%d, repeat('%d', %d));"
                " delete from entry where n < %d; commit" % (n, n, n, n % 100, n - 2000)
            )
        os.pwrite(files[1], b"%020d\n" % n, 0)
        time.sleep(0.002)


main()
