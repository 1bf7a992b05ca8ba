#!/usr/bin/python3
"""The table of figures: towline and its peers on the same data, one after the other. See bench.sh."""
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time

HERE = os.path.dirname(os.path.abspath(__file__))
TOP = os.path.dirname(os.path.dirname(HERE))
TOWLINE = os.environ.get("TOWLINE", os.path.join(TOP, "target/release/towline"))
SCALE = float(os.environ.get("BENCH_SCALE", "1"))
MIB = 1 << 20
TICK = os.sysconf("SC_CLK_TCK")
rows = []


def scaled(n, least=1):
    return max(least, int(n * SCALE))


def row(figure, value, must, peers="", note=""):
    rows.append((figure, value, must, peers, note))
    print("  %s: %s  [must: %s]  %s %s" % (figure, value, must, peers, note), flush=True)


def run(*words, **kw):
    return subprocess.run(list(words), check=True, **kw)


def timed(*words, **kw):
    """Seconds of a command and of making its result durable."""
    os.sync()
    start = time.monotonic()
    kw.setdefault("stdout", subprocess.DEVNULL)
    run(*words, **kw)
    os.sync()
    return time.monotonic() - start


def tree_bytes(path):
    return sum(os.path.getsize(os.path.join(d, f)) for d, _, fs in os.walk(path) for f in fs)


def program(name, *libs):
    out = os.path.join(work, name)
    run("gcc", "-O2", "-D_GNU_SOURCE", "-pthread", "-o", out, os.path.join(HERE, name + ".c"), *libs)
    return out


def free_port():
    while True:
        port = random.randrange(15000, 32000)
        with socket.socket() as s:
            try:
                s.bind(("127.0.0.1", port))
                return port
            except OSError:
                continue


class Node:
    """A towline process."""

    def __init__(self, home, upstream=None, data=None, **config):
        self.home, self.upstream, self.port = home, upstream, free_port()
        self.data, self.state = data or os.path.join(home, "data"), os.path.join(home, "state")
        os.makedirs(self.data, exist_ok=True)
        self.file = os.path.join(home, "towline.toml")
        with open(self.file, "w") as f:
            for key, value in config.items():
                f.write("%s = %s\n" % (key, json.dumps(value)))
        self.start()

    def start(self):
        words = [TOWLINE, "follower" if self.upstream else "leader", "--data", self.data, "--state", self.state]
        words += ["--listen", "127.0.0.1:%d" % self.port, "--config", self.file]
        if self.upstream:
            words += ["--leader", "127.0.0.1:%d" % self.upstream.port, "--name", os.path.basename(self.home)]
        log = open(os.path.join(self.home, "log.txt"), "ab")
        self.process = subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        nodes.append(self)

    def stop(self):
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            self.process.wait(60)

    def kill(self):
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()

    def status(self):
        out = subprocess.run(
            [TOWLINE, "status", "--state", self.state, "--json"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        )
        return json.loads(out.stdout) if out.returncode == 0 else None

    def until(self, what, test, limit=1800, pause=0.01):
        end = time.monotonic() + limit
        while time.monotonic() < end:
            if self.process.poll() is not None:
                sys.exit("bench: %s ended; see %s/log.txt" % (self.home, self.home))
            status = self.status()
            if status and test(status):
                return status
            time.sleep(pause)
        sys.exit("bench: %s: not within %d s: %s; %s" % (self.home, limit, what, status))

    def cpu(self):
        """User and system seconds."""
        with open("/proc/%d/stat" % self.process.pid) as f:
            words = f.read().rsplit(")", 1)[1].split()
        return int(words[11]) / TICK, int(words[12]) / TICK

    def memory(self, key="VmRSS"):
        with open("/proc/%d/status" % self.process.pid) as f:
            return next(int(line.split()[1]) for line in f if line.startswith(key + ":"))

    def log_bytes(self):
        return tree_bytes(os.path.join(self.state, "log"))


def lsn(text):
    hi, lo = text.split("/")
    return int(hi, 16) << 32 | int(lo, 16)


def ready(status):
    return status.get("state") == "running" and not status.get("error")


def applied(status):
    apply = status.get("apply") or {}
    return lsn(apply["lsn"]) if apply.get("lsn") else 0


def settled(leader, follower):
    """Waits until the follower has applied all that the leader's log holds, twice in a row."""
    for _ in range(2):
        end = lsn(leader.until("cuts", lambda s: s["log"].get("exact"))["log"]["exact"])
        follower.until("applied", lambda s: applied(s) >= end)
        time.sleep(0.3)


def pair(name, data=None, **config):
    leader = Node(os.path.join(work, name, "leader"), data=data, **config)
    leader.until("running", ready)
    follower = Node(os.path.join(work, name, "follower"), leader)
    follower.until("filled", lambda s: ready(s) and applied(s))
    return leader, follower


def drop(name):
    for node in nodes:
        node.kill()
    nodes.clear()
    shutil.rmtree(os.path.join(work, name), ignore_errors=True)


def cpu_note(*pairs):
    out = []
    for node, before in pairs:
        user, system = (b - a for a, b in zip(before, node.cpu()))
        out.append("%s %.2f user %.2f sys" % (os.path.basename(node.home), user, system))
    return "; ".join(out)


def lag():
    tool = program("lag")
    leader, follower = pair("lag")
    count = scaled(500, 50)
    for kind in ["create", "append", "replace"]:
        out = run(tool, leader.data, follower.data, str(count), "10", kind, stdout=subprocess.PIPE, text=True).stdout
        _, p50, p90, p99, worst = (float(x) / 1000 for x in out.split())
        ours = (p50, p99)
        row(
            "lag %s, ms" % kind,
            "p50 %.2f p99 %.2f" % ours,
            "p50 <= 2, p99 <= 10",
            "",
            "p90 %.2f max %.2f" % (p90, worst),
        )
    drop("lag")
    home = os.path.join(work, "lsyncd")
    for d in ["a", "b"]:
        os.makedirs(os.path.join(home, d))
    conf = os.path.join(home, "conf.lua")
    with open(conf, "w") as f:
        f.write('settings{nodaemon=true}\nsync{default.rsync, source="%s/a", target="%s/b", delay=0}\n' % (home, home))
    peer = subprocess.Popen(["lsyncd", conf], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        time.sleep(2)
        out = run(tool, home + "/a", home + "/b", str(scaled(100, 20)), "50", "create", stdout=subprocess.PIPE, text=True)
        _, p50, _, p99, _ = (float(x) / 1000 for x in out.stdout.split())
        row("lag create, lsyncd delay 0, ms", "p50 %.2f p99 %.2f" % (p50, p99), "(peer)", "%.0fx towline" % (p50 / ours[0]))
    finally:
        peer.terminate()
        peer.wait()
    shutil.rmtree(home)


class Rsyncd:
    """An rsync daemon that takes what is sent to it on loopback."""

    def __init__(self, target):
        self.port = free_port()
        self.conf = target + ".rsyncd"
        os.makedirs(target, exist_ok=True)
        with open(self.conf, "w") as f:
            f.write("uid = root\ngid = root\nuse chroot = no\n[t]\npath = %s\nread only = no\n" % target)
        self.process = subprocess.Popen(
            ["rsync", "--daemon", "--no-detach", "--config", self.conf, "--address", "127.0.0.1", "--port", str(self.port)]
        )
        time.sleep(0.5)

    def take(self, source, *flags):
        url = "rsync://127.0.0.1:%d/t/" % self.port
        try:
            return timed("rsync", "-a", *flags, source + "/", url)
        finally:
            self.process.terminate()
            self.process.wait()


def fill_row(figure, name, source, must, peers):
    leader = Node(os.path.join(work, name, "leader"), data=source)
    leader.until("running", ready)
    if leader.status().get("capture", {}).get("unhashed"):
        leader.until("hashed", lambda s: not s["capture"]["unhashed"], pause=0.5)
    os.sync()
    before = leader.cpu()
    start = time.monotonic()
    follower = Node(os.path.join(work, name, "follower"), leader)
    follower.until("filled", lambda s: ready(s) and applied(s), pause=0.005)
    took = time.monotonic() - start
    note = cpu_note((leader, before), (follower, (0, 0)))
    run(os.path.join(TOP, "tests/support/treecheck.py"), source, follower.data, stdout=subprocess.DEVNULL)
    size = tree_bytes(source)
    text = ", ".join("%s %.2f (%.2fx)" % (k, v, v / took) for k, v in peers.items())
    row(figure, "%.2f s, %.0f MB/s" % (took, size / took / 1e6), must, text, note)
    for node in nodes:
        node.kill()
    nodes.clear()


def postgres_source(home):
    """A quiet PostgreSQL directory of about 2 GiB, and a pg_basebackup of it for comparison."""
    base = sorted(os.listdir("/usr/lib/postgresql"))[-1]
    tools = "/usr/lib/postgresql/%s/bin/" % base
    data, port = os.path.join(home, "pg"), free_port()
    os.makedirs(home)
    os.chmod(home, 0o755)
    os.makedirs(data)
    shutil.chown(data, "postgres", "postgres")

    def tool(name, *words, **kw):
        env = dict(os.environ, PGHOST="/tmp", PGPORT=str(port), PGDATABASE="postgres", LC_ALL="C")
        return ["runuser", "-u", "postgres", "--", tools + name, *words], dict(env=env, cwd="/", **kw)

    def call(name, *words):
        line, kw = tool(name, *words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        run(*line, **kw)

    call("initdb", "-A", "trust", "-N", "-k", "-D", data)
    with open(data + "/postgresql.conf", "a") as f:
        f.write("listen_addresses = ''\nunix_socket_directories = '/tmp'\nwal_level = replica\nmax_wal_size = '256MB'\n")
    call("pg_ctl", "start", "-w", "-D", data, "-o", "-p %d" % port)
    call("pgbench", "-i", "-q", "-s", str(scaled(125, 2)))
    call("psql", "-c", "checkpoint")
    out = os.path.join(home, "basebackup")
    os.makedirs(out)
    shutil.chown(out, "postgres", "postgres")
    line, kw = tool("pg_basebackup", "-D", out, "-c", "fast")
    took = timed(*line, **kw)
    call("pg_ctl", "stop", "-w", "-D", data)
    shutil.rmtree(out)
    return data, took


def copies(source, home):
    """The peers that can copy any directory."""
    peers = {}
    target = os.path.join(home, "target")
    peers["rsync -a zstd"] = Rsyncd(target).take(source, "-z", "--zc=zstd", "--zl=1")
    shutil.rmtree(target)
    peers["rsync -a"] = Rsyncd(target).take(source)
    shutil.rmtree(target)
    os.makedirs(target)
    script = 'tar -C "$1" -cf - . | zstd -1 -q | zstd -d -q | tar -C "$2" -xf -'
    peers["tar|zstd -1|untar"] = timed("sh", "-c", script, "sh", source, target)
    shutil.rmtree(target)
    peers["cp -a + sync"] = timed("cp", "-a", source, target)
    shutil.rmtree(target)
    return peers


def fill_pg():
    home = os.path.join(work, "fill-pg")
    source, basebackup = postgres_source(home)
    peers = copies(source, home)
    peers["pg_basebackup"] = basebackup
    size = tree_bytes(source) / (1 << 30)
    fill_row("fill, PostgreSQL %.2f GiB" % size, "fill-pg", source, "<= rsync zstd, tar zstd, pg_basebackup", peers)
    drop("fill-pg")


def small_files(path, count):
    rng = random.Random(4)
    for i in range(count):
        if i % 200 == 0:
            where = os.path.join(path, "d%d" % (i // 200))
            os.makedirs(where)
        with open("%s/%d" % (where, i), "wb") as f:
            f.write(rng.randbytes(rng.randrange(1024, 8192)))


def fill_small():
    home = os.path.join(work, "fill-small")
    source = os.path.join(home, "source")
    count = scaled(100_000, 1000)
    small_files(source, count)
    peers = copies(source, home)
    fill_row("fill, %d files of 1-8 KiB" % count, "fill-small", source, "<= rsync", peers)
    drop("fill-small")


def catchup():
    leader, follower = pair("catchup")
    follower.stop()
    first = lsn(leader.status()["log"]["end"])
    rng = random.Random(1)
    total = scaled(1024, 64)
    for i in range(total // 8):
        # Half of it compresses, as a data directory does.
        half = rng.randbytes(4 * MIB)
        with open("%s/f%d" % (leader.data, i), "wb") as f:
            f.write(half)
            f.write((half[:2048] + bytes(2048)) * (MIB // 1024))
    leader.until("captured", lambda s: lsn(s["log"]["end"]) - first >= total * MIB and ready(s))
    time.sleep(2)
    end = lsn(leader.status()["log"]["exact"])
    os.sync()
    before = leader.cpu()
    start = time.monotonic()
    follower.start()
    follower.until("caught up", lambda s: applied(s) >= end, pause=0.005)
    took = time.monotonic() - start
    note = cpu_note((leader, before), (follower, (0, 0)))
    row("catch-up after an outage, %d MiB" % total, "%.0f MB/s" % ((end - first) / took / 1e6), "200 MB/s", "", note)
    drop("catchup")


def page():
    home = os.path.join(work, "page")
    source = os.path.join(home, "source")
    os.makedirs(source)
    size = scaled(4096, 64)
    with open(source + "/large", "wb") as f:
        rng = random.Random(2)
        piece = rng.randbytes(16 * MIB)
        for i in range(size // 16):
            f.write(i.to_bytes(8, "little") + piece[8:])
    leader, follower = pair("page", data=source)
    leader.until("hashed", lambda s: not (s.get("capture") or {}).get("unhashed"), pause=0.5)
    settled(leader, follower)
    before, cpu = lsn(leader.status()["log"]["end"]), leader.cpu()
    at = (size // 2) * MIB + 4096
    start = time.monotonic()
    with open(source + "/large", "r+b") as f:
        f.seek(at)
        f.write(os.urandom(8192))
        f.seek(at)
        want = f.read(8192)
    with open(follower.data + "/large", "rb", buffering=0) as f:
        while os.pread(f.fileno(), 8192, at) != want:
            time.sleep(0.001)
    took = time.monotonic() - start
    time.sleep(2)
    wrote = lsn(leader.status()["log"]["end"]) - before
    row(
        "one 8 KiB page of a %d MiB file" % size,
        "%.1f KiB of log, %.2f s, %.1f GB/s" % (wrote / 1024, took, size * MIB / took / 1e9),
        "<= 64 KiB, >= 2 GB/s",
        "",
        cpu_note((leader, cpu)),
    )
    drop("page")


def pages():
    tool = program("pages")
    home = os.path.join(work, "pages")
    source = os.path.join(home, "source")
    os.makedirs(source)
    size, seconds = scaled(1024, 64), scaled(30, 5)
    with open(source + "/db", "wb") as f:
        for _ in range(size):
            f.write(os.urandom(MIB))
    leader, follower = pair("pages", data=source)
    leader.until("hashed", lambda s: not (s.get("capture") or {}).get("unhashed"), pause=0.5)
    settled(leader, follower)
    before, cpu, fcpu = lsn(leader.status()["log"]["end"]), leader.cpu(), follower.cpu()
    out = run(tool, source + "/db", follower.data + "/db", str(seconds), "1000", stdout=subprocess.PIPE, text=True).stdout
    n, p50, p99, worst, tail = (float(x) for x in out.split())
    used = sum(leader.cpu()) - sum(cpu)
    time.sleep(1)
    wrote = lsn(leader.status()["log"]["end"]) - before
    run(os.path.join(TOP, "tests/support/treecheck.py"), source, follower.data, stdout=subprocess.DEVNULL)
    row(
        "%d random 8 KiB writes in %d s into %d MiB" % (n, seconds, size),
        "lag p50 %.0f p99 %.0f ms, tail %.0f ms, leader %.2f cores" % (p50 / 1e3, p99 / 1e3, tail / 1e3, used / seconds),
        "p50 <= 500, tail <= 500, <= 1 core",
        "",
        "log %.2f of the bytes written; %s" % (wrote / (n * 8192), cpu_note((leader, cpu), (follower, fcpu))),
    )
    drop("pages")


def scan():
    home = os.path.join(work, "scan")
    source = os.path.join(home, "source")
    count = scaled(100_000, 1000)
    small_files(source, count)
    empty = Node(os.path.join(home, "empty"))
    empty.until("running", ready)
    empty.stop()
    start = time.monotonic()
    empty.start()
    empty.until("running", ready, pause=0.001)
    base = time.monotonic() - start
    empty.stop()
    leader = Node(os.path.join(home, "leader"), data=source)
    leader.until("hashed", lambda s: ready(s) and not (s.get("capture") or {}).get("unhashed"), pause=0.2)
    leader.stop()
    best, note = 1e9, ""
    for _ in range(3):
        start = time.monotonic()
        leader.start()
        leader.until("running", ready, pause=0.001)
        took = time.monotonic() - start - base
        if took < best:
            best, note = took, cpu_note((leader, (0, 0)))
        leader.stop()
    copy = os.path.join(home, "copy")
    run("cp", "-a", source, copy)
    start = time.monotonic()
    run("rsync", "-an", source + "/", copy + "/")
    peer = time.monotonic() - start
    per = best / count * 1e6
    row(
        "scan at start, %d files, warm" % count,
        "%.1f us a file" % per,
        "<= 5 us",
        "rsync -n %.1f (%.1fx)" % (peer / count * 1e6, peer / best),
        note + "; an empty start of %.0f ms is taken off" % (base * 1e3),
    )
    drop("scan")


def idle():
    home = os.path.join(work, "idle")
    source = os.path.join(home, "source")
    count, seconds = scaled(100_000, 1000), scaled(60, 10)
    small_files(source, count)
    leader, follower = pair("idle", data=source)
    leader.until("hashed", lambda s: not (s.get("capture") or {}).get("unhashed"), pause=0.5)
    settled(leader, follower)
    time.sleep(5)
    for node in [leader, follower]:
        before = sum(node.cpu())
        time.sleep(seconds)
        share = (sum(node.cpu()) - before) / seconds * 100
        row(
            "idle %s, %d files" % (os.path.basename(node.home), count),
            "%.2f %% of a core, %.0f MiB" % (share, node.memory() / 1024),
            "< 0.2 %, <= 60 MB",
            "",
            "peak %.0f MiB" % (node.memory("VmHWM") / 1024),
        )
    drop("idle")


def bulk():
    leader, follower = pair("bulk")
    before, stored = lsn(leader.status()["log"]["end"]), leader.log_bytes()
    size = scaled(1024, 32)
    cpu, fcpu = leader.cpu(), follower.cpu()
    start = time.monotonic()
    with open(leader.data + "/noise", "wb") as f:
        for _ in range(size):
            f.write(os.urandom(MIB))
    leader.until("captured", lambda s: lsn(s["log"]["exact"]) - before >= size * MIB)
    settled(leader, follower)
    took = time.monotonic() - start
    row(
        "log for %d MiB of noise" % size,
        "%.3fx on disk, %.3fx of LSN" % (
            (leader.log_bytes() - stored) / (size * MIB),
            (lsn(leader.status()["log"]["end"]) - before) / (size * MIB),
        ),
        "<= 1.02x",
        "",
        "%.1f s; %s" % (took, cpu_note((leader, cpu), (follower, fcpu))),
    )
    drop("bulk")


ALL = {
    "lag": lag,
    "fill-pg": fill_pg,
    "fill-small": fill_small,
    "catchup": catchup,
    "page": page,
    "pages": pages,
    "scan": scan,
    "idle": idle,
    "bulk": bulk,
}


def main():
    for name in sys.argv[1:] or ALL:
        print(name, flush=True)
        ALL[name]()
    print("\n| figure | towline | must | peers, s (times slower) | where the time goes |\n| --- | --- | --- | --- | --- |")
    for r in rows:
        print("| %s |" % " | ".join(r))


nodes = []
work = tempfile.mkdtemp(prefix="towline-bench-", dir=os.environ.get("BENCH_DIR", "/var/tmp"))
os.chmod(work, 0o755)
try:
    main()
finally:
    for node in nodes:
        node.kill()
    shutil.rmtree(work, ignore_errors=True)
