"""The figures. Each function measures one and gives rows of the table: see Row."""
import os
import random
import subprocess
import sys
import time

import backup
import bed
import failover
import fanout
import peers
import resync
import tls
import waits
from bed import MIB, Node, applied, hashed, lsn, median, pair, program, ready, run, same, settled, small_files
from where import Where

QUICK = False
ROUNDS = 0
# No further round of copies begins after so many seconds: deleting them may take longer than making them.
PATIENCE = 150


def scaled(n, least=1):
    """Sizes and counts of a quick run are a twentieth."""
    return max(least, n // 20 if QUICK else n)


def rounds():
    """How often each thing is measured; the median counts."""
    return ROUNDS or (1 if QUICK else 3)


class Row:
    """One line of the table. `checks`: (value, must, aim); what is to be large is given as a negative number. An
    aim of None: none is asked for."""

    def __init__(self, figure, measured, must, aim, checks, other="", ratio="", where=""):
        self.figure, self.measured, self.must, self.aim = figure, measured, must, aim
        self.other, self.ratio, self.where, self.load = other, ratio, where, bed.load()
        if any(value > limit for value, limit, _ in checks):
            self.verdict = "MISSED"
        elif all(aimed is None or value <= aimed for value, _, aimed in checks):
            self.verdict = "aim reached" if any(aimed is not None for _, _, aimed in checks) else "reached"
        else:
            self.verdict = "reached"

    def cells(self):
        texts = [self.figure, self.measured, self.must, self.aim, self.verdict, self.other, self.ratio, self.where]
        return [*texts, "%.1f" % self.load]


def lag_of(tool, source, target, count, pause, kind, floor=None):
    """Milliseconds: p50, p90, p99 and most, then those of the floor."""
    words = [tool, source, target, str(count), str(pause), kind, *([floor] if floor else [])]
    out = run(*words, stdout=subprocess.PIPE, text=True).stdout
    return [[float(x) / 1000 for x in line.split()[1:]] for line in out.splitlines()]


def lag():
    tool = program("lag")
    leader, follower = pair("lag")
    count, ours, rows = scaled(600, 50), {}, []
    for kind in ["create", "append", "replace"]:
        floor = os.path.join(bed.work, "lag", "floor-" + kind)
        os.makedirs(floor)
        with Where() as where:
            ours[kind] = lag_of(tool, leader.data, follower.data, count, 10, kind, floor), where
    leader.stop()
    follower.stop()
    peer = peers.Lsyncd(os.path.join(bed.work, "lsyncd"))
    theirs = lag_of(tool, peer.source, peer.target, scaled(200, 20), 50, "create")[0]
    peer.stop()
    for kind, ((own, bare), where) in ours.items():
        p50, p90, p99, worst = own
        rows.append(Row(
            "lag, %s" % kind,
            "p50 %.2f ms, p90 %.2f, p99 %.2f, max %.1f" % (p50, p90, p99, worst),
            "p50 2, p99 10 ms", "p50 1 ms",
            [(p50, 2, 1), (p99, 10, None)],
            "floor of two syncs p50 %.2f p99 %.2f" % (bare[0], bare[2])
            + ("; lsyncd p50 %.0f p99 %.0f" % (theirs[0], theirs[2]) if kind == "create" else ""),
            "%.1f x floor" % (p50 / bare[0]) + (", lsyncd %.0fx" % (theirs[0] / p50) if kind == "create" else ""),
            where.say(leader, follower),
        ))
    return rows


def first_copy(leader, home, check):
    """Seconds until an empty follower holds everything durably, and where they went."""
    leader.start()
    leader.until("hashed", hashed, pause=0.05)
    time.sleep(1)
    size = bed.tree_bytes(leader.data)
    os.sync()
    with Where() as where:
        bed.warm(size)
        start = time.monotonic()
        follower = Node(home, leader)
        follower.until("filled", lambda s: ready(s) and applied(s), pause=0.005)
        os.sync()
        took = time.monotonic() - start
    if check:
        same(leader.data, follower.data)
    follower.kill()
    leader.stop()
    bed.remove(home)
    return took, where.say(leader, follower)


def copies(figure, source, others, rivals, aim):
    """Copies of `source` by towline and its peers, in turn; `aim`: how many times faster than `rivals`."""
    home = os.path.dirname(source)
    target, place = os.path.join(home, "target"), os.path.join(home, "follower")
    leader = Node(os.path.join(home, "leader"), data=source, scrub_rate="16G")
    leader.until("hashed", hashed, pause=0.05)
    leader.stop()
    times, where = {}, ""
    began = time.monotonic()
    for n in range(rounds()):
        if n and not ROUNDS and time.monotonic() - began > PATIENCE:
            break
        turn = ["towline", *others]
        turn = turn[n % len(turn):] + turn[: n % len(turn)]
        for name in turn:
            if name == "towline":
                took, where = first_copy(leader, place, n == 0)
            else:
                took = others[name](source, target)
                bed.remove(target)
            times.setdefault(name, []).append(took)
            print("  %s: %.2f s" % (name, took), file=sys.stderr, flush=True)
    n = len(times["towline"])
    own = median(times.pop("towline"))
    middle = {name: median(took) for name, took in times.items()}
    rival = min(middle[name] for name in rivals)
    size = bed.tree_bytes(source)
    return [Row(
        figure + ", %.2f GiB" % (size / (1 << 30)),
        "%.2f s, %.0f MB/s, median of %d" % (own, size / own / 1e6, n),
        "no slower than " + ", ".join(rivals), "%.1fx faster" % aim,
        [(own / rival, 1, 1 / aim)],
        ", ".join("%s %.2f s" % (name, took) for name, took in middle.items()),
        ", ".join("%s %.2fx" % (name, took / own) for name, took in middle.items()),
        where,
    )]


def fill_pg():
    server = peers.Postgres(os.path.join(bed.work, "fill-pg"), scaled(132, 2))
    others = dict(peers.COPIES, pg_basebackup=server.basebackup)
    rivals = ["rsync -a zstd", "tar, zstd -1, untar", "pg_basebackup"]
    return copies("fill, PostgreSQL", server.data, others, rivals, 1.5)


def fill_small():
    source = os.path.join(bed.work, "fill-small", "source")
    count = scaled(100_000)
    small_files(source, count)
    # Deleting so many files takes longer than copying them: fewer copies are made.
    others = {name: copy for name, copy in peers.COPIES.items() if "tar" not in name}
    return copies("fill, %d files of 1-8 KiB" % count, source, others, ["rsync -a zstd", "rsync -a"], 2)


def catchup():
    leader, first = pair("catchup", max_slot_keep=1000, max_slot_disk="100%", min_free_disk="0")
    followers = [first]
    for n in range(1, rounds()):
        more = Node(os.path.join(bed.work, "catchup", "follower%d" % n), leader)
        more.until("filled", lambda s: ready(s) and applied(s))
        followers.append(more)
    for follower in followers:
        follower.stop()
    begin, rng, total = leader.end(), random.Random(1), scaled(1024)
    for i in range(max(1, total // 8)):
        # Half of it compresses, as a data directory does.
        half = rng.randbytes(4 * MIB)
        with open("%s/f%d" % (leader.data, i), "wb") as f:
            f.write(half)
            f.write((half[:2048] + bytes(2048)) * (MIB // 1024))
    leader.until("captured", lambda s: lsn(s["log"]["exact"]) - begin >= max(1, total // 8) * 8 * MIB and ready(s))
    time.sleep(2)
    end = lsn(leader.status()["log"]["exact"])
    rates, where = [], ""
    for follower in followers:
        os.sync()
        with Where() as watch:
            start = time.monotonic()
            follower.start()
            follower.until("caught up", lambda s: applied(s) >= end, pause=0.005)
            os.sync()
            rates.append((end - begin) / (time.monotonic() - start) / 1e6)
        where = watch.say(leader, follower)
        same(leader.data, follower.data)
        follower.stop()
    rate = median(rates)
    text = "%.0f MB/s (%s)" % (rate, ", ".join("%.0f" % r for r in rates))
    return [Row("catch-up, %d MiB of log" % ((end - begin) >> 20), text, "200 MB/s", "", [(-rate, -200, None)],
                "", "", where)]


def page():
    source = os.path.join(bed.work, "page", "source")
    os.makedirs(source)
    size = scaled(4096)
    with open(source + "/large", "wb") as f:
        piece = random.Random(2).randbytes(16 * MIB)
        for i in range(max(1, size // 16)):
            f.write(i.to_bytes(8, "little") + piece[8:])
    leader, follower = pair("page", data=source)
    settled(leader, follower)
    speeds, logs, where = [], [], ""
    for n in range(rounds()):
        before, at = leader.end(), (size // (n + 2)) * MIB + 4096
        with Where() as watch:
            start = time.monotonic()
            with open(source + "/large", "r+b") as f:
                f.seek(at)
                f.write(os.urandom(8192))
                f.seek(at)
                want = f.read(8192)
            with open(follower.data + "/large", "rb", buffering=0) as f:
                while os.pread(f.fileno(), 8192, at) != want:
                    if time.monotonic() - start > 60:
                        raise bed.Failed("the page did not come within 60 s")
                    time.sleep(0.001)
            speeds.append(size * MIB / (time.monotonic() - start) / 1e9)
        where = watch.say(leader, follower)
        time.sleep(2)
        logs.append((leader.end() - before) / 1024)
    speed, log = median(speeds), max(logs)
    return [Row("one 8 KiB page of %d MiB" % size,
                "%.1f KiB of log; visible after %.2f s: %.1f GB/s" % (log, size * MIB / speed / 1e9, speed),
                "64 KiB, 2 GB/s", "", [(log, 64, None), (-speed, -2, None)], "", "", where)]


def pages():
    tool = program("pages")
    source = os.path.join(bed.work, "pages", "source")
    os.makedirs(source)
    size, seconds = scaled(1024), 5 if QUICK else 30
    with open(source + "/db", "wb") as f:
        for _ in range(size):
            f.write(os.urandom(MIB))
    # A file written all the time is never seen at rest, so there are no exact cuts to wait for.
    leader, follower = pair("pages", data=source, cuts="file")
    settled(leader, follower)
    before, cpu = leader.end(), leader.cpu()
    with Where() as where:
        words = [tool, source + "/db", follower.data + "/db", str(seconds), "1000"]
        out = run(*words, stdout=subprocess.PIPE, text=True).stdout
    count, marks, p50, p99, _, tail = (float(x) / (1 if i < 2 else 1000) for i, x in enumerate(out.split()))
    # The program waits 2 s before it begins.
    cores = (leader.cpu() - cpu) / seconds
    time.sleep(2)
    sent = leader.end() - before
    same(source, follower.data)
    # A page is half of a block; a block is sent when it differs.
    most = (count + marks) * 16384
    return [Row("%d page writes into %d MiB in %d s" % (count, size, seconds),
                "lag p50 %.0f ms, p99 %.0f, tail %.0f ms; leader %.2f cores; sent %.2f of the blocks written"
                % (p50, p99, tail, cores, sent / most),
                "p50 500, tail 500 ms, 1 core, 1.0", "p50 150 ms",
                [(p50, 500, 150), (tail, 500, None), (cores, 1, None), (sent / most, 1.02, None)],
                "", "", where.say(leader, follower))]


def scan():
    home = os.path.join(bed.work, "scan")
    source, copy = os.path.join(home, "source"), os.path.join(home, "copy")
    count = scaled(100_000)
    small_files(source, count)
    run("cp", "-a", source, copy)
    empty = Node(os.path.join(home, "empty"))
    leader = Node(os.path.join(home, "leader"), data=source, scrub_rate="16G")
    starts, where = {"empty": [], "leader": [], "rsync": []}, None
    for node, done in [(empty, ready), (leader, hashed)]:
        node.until("hashed", done, pause=0.05)
        node.stop()
    for _ in range(rounds() + 2):
        for node in [empty, leader]:
            with Where() as watch:
                start = time.monotonic()
                node.start()
                node.until("running", ready, pause=0.001)
                starts[os.path.basename(node.home)].append(time.monotonic() - start)
            where = watch
            node.stop()
        start = time.monotonic()
        run("rsync", "-an", source + "/", copy + "/")
        starts["rsync"].append(time.monotonic() - start)
    base, took, peer = (median(starts[k]) for k in ["empty", "leader", "rsync"])
    per = (took - base) / count * 1e6
    return [Row("scan at start, %d files" % count,
                "%.1f us a file (without an empty start of %.0f ms)" % (per, base * 1e3),
                "5 us", "2.5 us", [(per, 5, 2.5)],
                "rsync -n %.1f us" % (peer / count * 1e6), "rsync -n %.1fx" % (peer / (took - base)),
                where.say(leader))]


def idle():
    source = os.path.join(bed.work, "idle", "source")
    count, seconds = scaled(100_000), 10 if QUICK else 60
    small_files(source, count)
    pair_of = pair("idle", data=source)
    settled(*pair_of)
    time.sleep(10)
    before = [node.cpu() for node in pair_of]
    with Where() as where:
        time.sleep(seconds)
    rows = []
    for node, cpu in zip(pair_of, before):
        share, memory = (node.cpu() - cpu) / where.seconds * 100, node.memory()
        rows.append(Row("idle %s, %d files" % (os.path.basename(node.home), count),
                        "%.2f %% of a core, %.0f MB (peak %.0f)" % (share, memory, node.memory("VmHWM")),
                        "0.2 %, 60 MB", "40 MB", [(share, 0.2, None), (memory, 60, 40)], "", "", where.say(node)))
    return rows


def bulk():
    leader, follower = pair("bulk", keep_segments=1000)
    before, stored, size = leader.end(), leader.log_bytes(), scaled(1024)
    with Where() as where:
        start = time.monotonic()
        with open(leader.data + "/noise", "wb") as f:
            for _ in range(size):
                f.write(os.urandom(MIB))
        leader.until("captured", lambda s: lsn(s["log"]["exact"]) - before >= size * MIB)
        settled(leader, follower)
        took = time.monotonic() - start
    disk, log = ((x) / (size * MIB) for x in (leader.log_bytes() - stored, leader.end() - before))
    return [Row("log of %d MiB of noise" % size,
                "%.3fx on disk (positions advance %.3fx); %.1f s" % (disk, log, took),
                "1.02x", "", [(disk, 1.02, None)], "", "", where.say(leader, follower))]


def wait():
    return waits.measure(scaled, rounds(), Row)


def encrypted():
    return tls.measure(scaled, rounds(), Row)


def fanned_out():
    return fanout.measure(scaled, rounds(), Row)


def resyncs():
    return resync.measure(scaled, rounds(), Row)


def backed_up(measure):
    """A figure of backups, restores or failover."""
    return lambda: measure(scaled, rounds(), Row)


ALL = {
    "lag": lag,
    "wait": wait,
    "fill-pg": fill_pg,
    "fill-small": fill_small,
    "catchup": catchup,
    "page": page,
    "pages": pages,
    "scan": scan,
    "idle": idle,
    "bulk": bulk,
    "tls": encrypted,
    "fanout": fanned_out,
    "resync": resyncs,
    "backup-pg": backed_up(backup.of_postgres),
    "backup-small": backed_up(backup.of_small),
    "incremental": backed_up(backup.incremental),
    "restore": backed_up(backup.restored),
    "verify": backed_up(backup.verified),
    "promote": backed_up(failover.promotions),
    "switchover": backed_up(failover.switchovers),
    "rewind": backed_up(failover.rewinds),
}
