"""What `towline wait` takes beside PostgreSQL's synchronous commit, over connections that stay open."""
import glob
import json
import os
import shutil
import socket
import time

import bed
import peers
from where import Where

# Level here, synchronous_commit there.
LEVELS = [("write", "remote_write"), ("flush", "on"), ("apply", "remote_apply")]


class Service:
    """A service that appends to its file and waits, as its own commit would."""

    def __init__(self, leader):
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.connect(os.path.join(leader.state, "control.sock"))
        self.lines = self.socket.makefile("rw")
        self.file = os.open(os.path.join(leader.data, "orders"), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)

    def commit(self, level):
        """Milliseconds from the write to the answer, and of these until it was durable on the leader."""
        start = time.monotonic()
        os.write(self.file, b"order 4711, 128 bytes of it".ljust(127) + b"\n")
        self.lines.write(json.dumps({"command": "wait", "level": level, "timeout": "30s"}) + "\n")
        self.lines.flush()
        answer = json.loads(self.lines.readline())
        took = (time.monotonic() - start) * 1000
        if answer.get("result") != "replicated":
            raise bed.Failed("not replicated: %s" % answer)
        return took, answer["capture_ms"]

    def close(self):
        os.close(self.file)
        self.lines.close()
        self.socket.close()


class Standby:
    """A primary and a standby of it on the same disk; each commit waits for the standby."""

    def __init__(self, home):
        self.primary = peers.Postgres(home, 1)
        with open(self.primary.data + "/postgresql.conf", "a") as f:
            f.write("synchronous_standby_names = '*'\nmax_wal_senders = 5\n")
        # Until the standby is there nothing may wait for it.
        os.environ["PGOPTIONS"] = "-c synchronous_commit=local"
        self.primary.up()
        self.primary.call("psql", "-c", "create table orders (n serial, t text)")
        self.data = os.path.join(home, "standby")
        os.makedirs(self.data)
        os.chmod(self.data, 0o700)
        shutil.chown(self.data, "postgres", "postgres")
        self.primary.call("pg_basebackup", "-D", self.data, "-c", "fast", "-R")
        self.port = bed.free_port()
        bed.closers.append(self.stop)
        self.primary.call("pg_ctl", "start", "-w", "-D", self.data, "-l", home + "/standby.log", "-o", "-p %d" % self.port)
        self.home = home
        self.script = home + "/order.sql"
        with open(self.script, "w") as f:
            f.write("insert into orders (t) values (rpad('order 4711', 127));\n")
        os.chmod(self.script, 0o644)

    def commits(self, level, count):
        """Milliseconds of each commit."""
        os.environ["PGOPTIONS"] = "-c synchronous_commit=%s" % level
        prefix = self.home + "/log-" + level
        try:
            self.primary.call("pgbench", "-n", "-c", "1", "-t", str(count), "-f", self.script, "-l",
                              "--log-prefix=" + prefix)
        finally:
            os.environ.pop("PGOPTIONS", None)
        times = []
        for name in glob.glob(prefix + ".*"):
            with open(name) as f:
                times += [int(line.split()[2]) / 1000 for line in f]
            os.unlink(name)
        return times

    def stop(self):
        line, kw = self.primary.words("pg_ctl", "stop", "-w", "-m", "fast", "-D", self.data)
        bed.subprocess.run(line, check=False, **kw)

    def down(self):
        os.environ.pop("PGOPTIONS", None)
        self.stop()
        self.primary.down()


def point(times, share):
    times = sorted(times)
    return times[min(len(times) - 1, int(len(times) * share))]


def measure(scaled, rounds, Row):
    count = scaled(400, 60)
    leader, follower = bed.pair("wait")
    service = Service(leader)
    rival = Standby(os.path.join(bed.work, "wait-pg"))
    ours, local, theirs = {}, {}, {}
    for level, setting in LEVELS:
        for _ in range(10):
            service.commit(level)
        rival.commits(setting, 10)
    with Where() as where:
        for _ in range(rounds):
            for level, setting in LEVELS:
                for _ in range(count):
                    took, captured = service.commit(level)
                    ours.setdefault(level, []).append(took)
                    local.setdefault(level, []).append(captured)
                theirs.setdefault(level, []).extend(rival.commits(setting, count))
    service.close()
    rival.down()
    rows = []
    for level, setting in LEVELS:
        own, other = ours[level], theirs[level]
        p50, p99 = point(own, 0.5), point(own, 0.99)
        peer50, peer99 = point(other, 0.5), point(other, 0.99)
        rows.append(Row(
            "wait, level %s" % level,
            "p50 %.2f ms, p99 %.2f; of it until durable here p50 %.2f" % (p50, p99, point(local[level], 0.5)),
            "PostgreSQL's", "", [(p50 / peer50, 1, None), (p99 / peer99, 1, None)],
            "PostgreSQL %s p50 %.2f ms, p99 %.2f" % (setting, peer50, peer99),
            "p50 %.2fx, p99 %.2fx" % (peer50 / p50, peer99 / p99),
            where.say(leader, follower),
        ))
    return rows
