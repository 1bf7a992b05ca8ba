"""When the leader is lost, or moved: promotion, switchover and rewind, beside PostgreSQL's own."""
import json
import os
import random
import shutil
import sqlite3
import subprocess
import sys
import threading
import time

import bed
import peers
import resync
from bed import MIB, TOWLINE, Node, applied, lsn, median, ready, run

# What one commit of the writer below inserts.
ROW = "x" * 100


def told(node, *words):
    """What a command of this node says, as JSON."""
    said = subprocess.run([TOWLINE, *words, "--state", node.state, "--json"], stdout=subprocess.PIPE,
                          stderr=subprocess.PIPE, text=True, check=False)
    if said.returncode != 0:
        raise bed.Failed("%s: exit code %d: %s" % (" ".join(words), said.returncode, said.stderr[-300:]))
    return json.loads(said.stdout)


def followed(leader, follower):
    """Waits until the follower's log holds all that the leader's holds. Its end."""
    end = leader.end()
    follower.until("its log", lambda s: s.get("log") and lsn(s["log"]["end"]) >= end)
    return end


def leads(status):
    return ready(status) and status.get("role") == "leader"


class Standby:
    """A primary and a standby beside it, without any synchronous commit."""

    def __init__(self, home, scale):
        self.primary, self.home = peers.Postgres(home, scale), home
        with open(self.primary.data + "/postgresql.conf", "a") as f:
            f.write("wal_log_hints = on\nwal_keep_size = '16GB'\n")
        self.primary.up()
        self.data, self.port = os.path.join(home, "standby"), bed.free_port()
        os.makedirs(self.data)
        os.chmod(self.data, 0o700)
        shutil.chown(self.data, "postgres", "postgres")
        self.primary.call("pg_basebackup", "-D", self.data, "-c", "fast", "-R")
        bed.closers.append(self.stop)
        self.start()

    def start(self):
        self.primary.call("pg_ctl", "start", "-w", "-D", self.data, "-l", self.home + "/standby.log",
                          "-o", "-p %d" % self.port)

    def ask(self, sql, port=None):
        line, kw = self.primary.words("psql", "-p", str(port or self.port), "-AXtc", sql)
        kw["stdout"] = subprocess.PIPE
        return subprocess.run(line, check=True, text=True, **kw).stdout.strip()

    def caught_up(self):
        end = self.ask("select pg_current_wal_lsn()", self.primary.port)
        while self.ask("select pg_last_wal_receive_lsn() >= '%s'::pg_lsn" % end) != "t":
            time.sleep(0.05)

    def promote(self):
        """Seconds until it takes writes."""
        start = time.monotonic()
        self.primary.call("pg_ctl", "promote", "-w", "-t", "600", "-D", self.data)
        while self.ask("select pg_is_in_recovery()") != "f":
            time.sleep(0.01)
        return time.monotonic() - start

    def lose_primary(self):
        line, kw = self.primary.words("pg_ctl", "stop", "-w", "-m", "immediate", "-D", self.primary.data)
        subprocess.run(line, check=False, **kw)

    def stop(self):
        line, kw = self.primary.words("pg_ctl", "stop", "-w", "-m", "fast", "-D", self.data)
        subprocess.run(line, check=False, **kw)

    def down(self):
        self.stop()
        self.primary.down()


def promoted(leader, follower):
    """Seconds from the command until the node serves as the leader; the leader was killed."""
    leader.kill()
    start = time.monotonic()
    told(follower, "promote", "--wait", "--timeout", "10m")
    took = time.monotonic() - start
    if not leads(follower.status()):
        raise bed.Failed("promoted, but it does not lead")
    return took


def promotions(scaled, rounds, row):
    home, own = os.path.join(bed.work, "promote"), []
    for n in range(3 * rounds):
        place = os.path.join(home, "idle%d" % n)
        leader = Node(os.path.join(place, "a"), tls="off")
        bed.small_files(leader.data + "/d", scaled(2000))
        leader.until("all of it", lambda s: bed.hashed(s) and s["capture"]["files"] >= scaled(2000))
        follower = Node(os.path.join(place, "b"), leader, tls="off")
        bed.settled(leader, follower)
        own.append(promoted(leader, follower))
        follower.stop()
    rival = Standby(os.path.join(home, "pg"), 1)
    rival.caught_up()
    rival.lose_primary()
    theirs = rival.promote()
    rival.down()
    rows = [row("promote at idle, until it serves", "p50 %.2f s, most %.2f" % (median(own), max(own)), "", "0.2 s",
                [(median(own), 3600, 0.2)], "pg_ctl promote, with its queries %.2f s" % theirs,
                "%.2fx" % (theirs / median(own)))]
    rows.append(with_log(scaled, rounds, row, home))
    return rows


def with_log(scaled, rounds, row, home):
    """Log that was received, but not replayed."""
    size, own, theirs = scaled(1024) * MIB, [], []
    for n in range(rounds):
        place = os.path.join(home, "log%d" % n)
        leader = Node(os.path.join(place, "a"), tls="off", keep_segments=100000)
        leader.until("ready", ready)
        follower = Node(os.path.join(place, "b"), leader, tls="off", keep_segments=100000)
        bed.settled(leader, follower)
        told(follower, "pause")
        resync.furnish(os.path.join(leader.data, "new"), size)
        leader.until("captured", lambda s: s["capture"]["files"] >= size // resync.FILE)
        time.sleep(1)
        told(leader, "wait", "--level", "flush", "--timeout", "5m")
        followed(leader, follower)
        own.append(promoted(leader, follower))
        bed.same(leader.data, follower.data)
        follower.stop()
        bed.remove(place)
    for n in range(rounds):
        rival = Standby(os.path.join(home, "pg-log%d" % n), 1)
        rival.ask("select pg_wal_replay_pause()")
        rival.ask("create table big as select i, repeat(md5(i::text), 30) t from generate_series(1, %d) i"
                  % (size // 1100), rival.primary.port)
        rival.caught_up()
        behind = int(float(rival.ask("select pg_wal_lsn_diff(pg_last_wal_receive_lsn(), pg_last_wal_replay_lsn())")))
        rival.lose_primary()
        theirs.append((rival.promote(), behind))
        rival.down()
        bed.remove(rival.home)
    a, b = median(own), median([t for t, _ in theirs])
    return row("promote with %.1f GiB of log to replay" % (size / (1 << 30)),
               "p50 %.2f s, %.0f MB/s" % (a, size / 1e6 / a), "", "", [(a, 3600, None)],
               "pg_ctl promote with %.1f GiB of WAL %.2f s" % (theirs[0][1] / (1 << 30), b), "%.2fx" % (b / a))


class Writer:
    """A service with an SQLite database that runs where it is told to: hooks write its marching orders into files."""

    def __init__(self, home):
        self.home, self.done, self.times, self.error = home, False, [], None
        os.makedirs(home, exist_ok=True)
        self.thread = threading.Thread(target=self.run)

    def hooks(self, data):
        """Commands that stop it, and start it on that directory."""
        stop = "rm -f '{0}/run'; while [ -e '{0}/running' ]; do sleep 0.005; done".format(self.home)
        start = "printf %s '{1}' >'{0}/next' && mv '{0}/next' '{0}/run'".format(self.home, data)
        return {"on_demote": stop, "on_promote": start}

    def start(self, data):
        with open(self.home + "/run", "w") as f:
            f.write(data)
        self.thread.start()

    def run(self):
        try:
            while not self.done:
                try:
                    with open(self.home + "/run") as f:
                        data = f.read()
                except OSError:
                    time.sleep(0.001)
                    continue
                self.serve(data)
        except sqlite3.Error as e:
            self.error = e

    def serve(self, data):
        open(self.home + "/running", "w").close()
        base = sqlite3.connect(os.path.join(data, "orders.db"), isolation_level=None)
        base.execute("pragma journal_mode = wal")
        base.execute("pragma synchronous = full")
        base.execute("create table if not exists orders (n integer primary key, t text)")
        while not self.done and os.path.exists(self.home + "/run"):
            base.execute("insert into orders (t) values (?)", (ROW,))
            self.times.append(time.monotonic())
            time.sleep(0.002)
        base.close()
        os.unlink(self.home + "/running")

    def end(self):
        self.done = True
        self.thread.join()
        if self.error:
            raise bed.Failed("the writer met an error: %s" % self.error)

    def outage(self, since):
        """Longest time between two commits from there on."""
        times = [t for t in self.times if t >= since]
        return max(b - a for a, b in zip(times, times[1:]))


def switchovers(scaled, rounds, row):
    home = os.path.join(bed.work, "switchover")
    writer = Writer(os.path.join(home, "service"))
    ports = [bed.free_port(), bed.free_port()]
    both = ["127.0.0.1:%d" % p for p in ports]
    a = Node(os.path.join(home, "a"), port=ports[0], leader=both, name="a", tls="off",
             **writer.hooks(os.path.join(home, "a", "data")))
    writer.start(a.data)
    a.until("all of it", hashed_with(1))
    b = Node(os.path.join(home, "b"), a, port=ports[1], leader=both, name="b", tls="off",
             **writer.hooks(os.path.join(home, "b", "data")))
    b.until("streams", lambda s: ready(s) and applied(s))
    time.sleep(1)
    outages, said = [], []
    for n in range(2 * rounds):
        node, other = (a, b) if n % 2 == 0 else (b, a)
        began = time.monotonic()
        said.append(told(node, "switchover", "--to", os.path.basename(other.home)))
        other.until("leads", leads)
        node.until("follows", lambda s: ready(s) and s.get("role") == "follower" and applied(s))
        time.sleep(1)
        outages.append(writer.outage(began))
    writer.end()
    count = len(writer.times)
    with sqlite3.connect(os.path.join(other.data, "orders.db")) as base:
        there, well = base.execute("select count(*) from orders").fetchone()[0], base.execute("pragma integrity_check").fetchone()[0]
    if (there, well) != (count, "ok"):
        raise bed.Failed("%d of %d commits are there; integrity: %s" % (there, count, well))
    return [row("switchover with a live SQLite writer, outage of its writes",
                "p50 %.2f s, most %.2f; %d commits, all of them there" % (median(outages), max(outages), count),
                "", "below 1 s", [(median(outages), 3600, 1)], "", "",
                "the node itself says %.3f s" % median([s["writes_stopped_seconds"] for s in said]))]


def hashed_with(files):
    return lambda s: bed.hashed(s) and s["capture"]["files"] >= files


def rewinds(scaled, rounds, row):
    size = scaled(10240) * MIB // resync.FILE * resync.FILE
    home, took, moved, changed = os.path.join(bed.work, "rewind"), [], [], 0
    for n in range(rounds):
        place = os.path.join(home, "own%d" % n)
        a = Node(os.path.join(place, "a"), scrub_rate="16G", tls="off", keep_segments=100000)
        resync.furnish(a.data, size)
        a.until("hashed", lambda s: bed.hashed(s) and s["capture"]["files"] >= size // resync.FILE, limit=1800, pause=0.05)
        b = Node(os.path.join(place, "b"), a, tls="off", keep_segments=100000)
        bed.settled(a, b)
        b.stop()
        changed = resync.change(a.data, n)
        a.until("hashed", bed.hashed, pause=0.05)
        # Nobody is there who could confirm it; the answer says that it is in the log.
        subprocess.run([TOWLINE, "wait", "--timeout", "1s", "--state", a.state], stdout=subprocess.DEVNULL, check=False)
        a.kill()
        b.start()
        b.until("replayed", lambda s: s.get("apply") and applied(s))
        told(b, "promote", "--wait", "--timeout", "5m")
        os.sync()
        start = time.monotonic()
        answer = told(a, "rewind", "--leader", "127.0.0.1:%d" % b.port)
        os.sync()
        took.append(time.monotonic() - start)
        moved.append(answer["received_bytes"])
        bed.same(b.data, a.data)
        b.stop()
        bed.remove(place)
    theirs, far = pg_rewind(scaled, home)
    mine, wire = median(took), median(moved)
    return [row("rewind of %.1f GiB, 1 %% diverged" % (size / (1 << 30)),
                "%.2f s, %.1f MB moved for %.1f MB that differ (%.2fx)" % (mine, wire / 1e6, changed / 1e6, wire / changed),
                "", "", [(mine, 3600, None)], "pg_rewind of %.1f GiB %.2f s, %.0f MB copied" % (far[0] / (1 << 30), theirs, far[1]),
                "%.2fx" % (theirs / mine))]


def pg_rewind(scaled, home):
    """Seconds of pg_rewind after a hundredth of the rows was updated in the old primary; the size in bytes, and the MB that it
    says it copied."""
    rival = Standby(os.path.join(home, "pg"), scaled(680, 8))
    rival.caught_up()
    rival.stop()
    rival.ask("update pgbench_accounts set abalance = abalance + 1 where aid % 6100 = 0", rival.primary.port)
    rival.ask("checkpoint", rival.primary.port)
    rival.primary.down()
    rival.start()
    rival.promote()
    rival.ask("checkpoint")
    size = bed.tree_bytes(rival.primary.data)
    line, kw = rival.primary.words("pg_rewind", "-D", rival.primary.data, "-P",
                                   "--source-server=host=%s port=%d dbname=postgres" % (rival.home, rival.port))
    kw["stdout"], kw["stderr"] = subprocess.PIPE, subprocess.STDOUT
    os.sync()
    start = time.monotonic()
    said = subprocess.run(line, text=True, check=False, **kw)
    os.sync()
    took = time.monotonic() - start
    if said.returncode != 0:
        raise bed.Failed("pg_rewind: %s" % said.stdout[-500:])
    copied = [int(w.split("/")[-1].split()[0]) / 1000 for w in said.stdout.replace("\r", "\n").splitlines() if " kB " in w]
    rival.down()
    return took, (size, copied[-1] if copied else 0)
