"""A follower whose log is gone at the leader, and a directory that was sent ahead, made equal again: against rsync."""
import os
import random
import re
import subprocess
import time

import bed
import peers
from bed import MIB, Node, hashed, median, ready, run, same, settled

BLOCK = 16 << 10
# One file; all are of this size, and each has its share of the changes.
FILE = 16 * MIB


def furnish(path, size):
    os.makedirs(path, exist_ok=True)
    for n in range(size // FILE):
        with open(os.path.join(path, "f%05d" % n), "wb") as f:
            for _ in range(FILE // MIB):
                f.write(os.urandom(MIB))


def change(path, seed):
    """Gives one block in a hundred another content, in place. Their bytes."""
    rng, changed = random.Random(seed), 0
    for name in sorted(n for n in os.listdir(path) if n != "tick"):
        with open(os.path.join(path, name), "r+b") as f:
            blocks = FILE // BLOCK
            for block in rng.sample(range(blocks), max(1, blocks // 100)):
                f.seek(block * BLOCK)
                f.write(os.urandom(BLOCK))
                changed += BLOCK
    return changed


def forget_log(leader):
    """The leader's log begins after what its followers have."""
    log = os.path.join(leader.state, "log")
    segments = sorted(n for n in os.listdir(log) if len(n) >= 24)
    for name in segments[:-2]:
        os.unlink(os.path.join(log, name))


def resynced(status):
    return ready(status) and (status.get("resync") or {}).get("completed", 0) >= 1


def timed(node_of):
    """Seconds until a node is resynced and durable, and bytes over the line."""
    os.sync()
    start = time.monotonic()
    node = node_of()
    told = node.until("resynced", resynced, limit=1800, pause=0.02)["resync"]
    os.sync()
    return time.monotonic() - start, told["wire_bytes"], node


def rsync(source, target):
    """Seconds and bytes of rsync into a daemon on loopback, in place."""
    port, conf = bed.free_port(), target + ".rsyncd"
    with open(conf, "w") as f:
        f.write("uid = root\ngid = root\nuse chroot = no\n[t]\npath = %s\nread only = no\n" % target)
    words = ["rsync", "--daemon", "--no-detach", "--config", conf, "--address", "127.0.0.1", "--port", str(port)]
    daemon = subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    bed.closers.append(daemon.kill)
    try:
        peers.until_open(port)
        os.sync()
        start = time.monotonic()
        words = ["rsync", "-a", "--inplace", "--no-whole-file", "--delete", "--stats", source + "/",
                 "rsync://127.0.0.1:%d/t/" % port]
        said = run(*words, capture_output=True, text=True).stdout
        os.sync()
        took = time.monotonic() - start
    finally:
        daemon.terminate()
        daemon.wait()
    moved = [int(n.replace(",", "")) for n in re.findall(r"Total bytes (?:sent|received): ([\d,]+)", said)]
    return took, sum(moved)


def measure(scaled, rounds, row):
    """Rows of the table."""
    size = scaled(10240) * MIB // FILE * FILE
    home = os.path.join(bed.work, "resync")
    leader = Node(os.path.join(home, "leader"), scrub_rate="16G", segment_timeout="500ms", tls="off")
    furnish(leader.data, size)
    leader.until("hashed", hashed, limit=1800, pause=0.05)
    follower = Node(os.path.join(home, "follower"), leader, tls="off")
    settled(leader, follower)
    sent_ahead, mirror = os.path.join(home, "adopted", "data"), os.path.join(home, "mirror")
    took, moved, changed = {}, {}, 0
    for n in range(rounds):
        follower.stop()
        for copy in [sent_ahead, mirror]:
            bed.remove(copy)
            os.makedirs(os.path.dirname(copy), exist_ok=True)
            run("cp", "-a", follower.data, copy)
        changed = change(leader.data, n)
        leader.until("hashed", hashed, pause=0.05)
        # Each in a segment of its own, so that those before can go.
        for tick in range(4):
            time.sleep(1.5)
            with open(os.path.join(leader.data, "tick"), "w") as f:
                f.write("%d %d" % (n, tick))
        time.sleep(1.5)
        leader.stop()
        forget_log(leader)
        leader.start()
        leader.until("hashed", hashed, limit=1800, pause=0.05)

        def again():
            follower.start()
            return follower

        def adopted():
            return Node(os.path.join(home, "adopted"), leader, adopt=True, tls="off")

        for name, what in [("resync", again), ("adopt", adopted)]:
            seconds, wire, node = timed(what)
            took.setdefault(name, []).append(seconds)
            moved.setdefault(name, []).append(wire)
            same(leader.data, node.data)
        node.stop()
        bed.remove(node.home)
        seconds, wire = rsync(leader.data, mirror)
        took.setdefault("rsync", []).append(seconds)
        moved.setdefault("rsync", []).append(wire)
    rows = []
    theirs, theirs_moved = median(took["rsync"]), median(moved["rsync"])
    names = {"resync": "resync, 1 %% of %.1f GiB changed", "adopt": "adopting %.1f GiB of which 1 %% differs"}
    for name, text in names.items():
        own, wire = median(took[name]), median(moved[name])
        rows.append(row(
            text % (size / (1 << 30)),
            "%.2f s; %.1f MB over the line for %.1f MB that differ (%.2fx)"
            % (own, wire / 1e6, changed / 1e6, wire / changed),
            "no slower than rsync", "",
            [(own / theirs, 1, None)],
            "rsync --inplace %.2f s, %.1f MB" % (theirs, theirs_moved / 1e6),
            "rsync %.2fx the time, %.2fx the bytes" % (theirs / own, theirs_moved / wire),
        ))
    return rows
