"""What the figures stand on: the work directory, towline processes, and what is read from /proc."""
import json
import mmap
import os
import random
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from statistics import median

HERE = os.path.dirname(os.path.abspath(__file__))
TOP = os.path.dirname(os.path.dirname(HERE))
TOWLINE = os.environ.get("TOWLINE", os.path.join(TOP, "target/release/towline"))
TREECHECK = os.path.join(TOP, "tests/support/treecheck.py")
MIB = 1 << 20

# Everything here that is started is ended by close(), whatever happens.
work = tempfile.mkdtemp(prefix="towline-bench-", dir=os.environ.get("BENCH_DIR", "/var/tmp"))
os.chmod(work, 0o755)
nodes = []
closers = []


class Failed(Exception):
    """A figure could not be measured."""


def close():
    """Ends what a figure left behind: its processes, then its files."""
    for node in nodes:
        node.kill()
    nodes.clear()
    while closers:
        closers.pop()()


def clear():
    """An empty work directory for the next figure."""
    close()
    for name in os.listdir(work):
        remove(os.path.join(work, name))


def remove(path):
    """Deletes a tree, its directories side by side: a file system that tells the disk of every freed block while it
    deletes ("discard") is slow with one after the other."""
    parts = [os.path.join(d, name) for d, dirs, _ in os.walk(path) for name in dirs if len(dirs) > 8]
    names = b"\0".join(os.fsencode(p) for p in parts)
    subprocess.run(["xargs", "-0r", "-P", "16", "-n", "8", "rm", "-rf", "--"], input=names, check=False)
    shutil.rmtree(path, ignore_errors=True)
    if os.path.lexists(path) and not os.path.isdir(path):
        os.unlink(path)


def run(*words, **kw):
    return subprocess.run(list(words), check=True, **kw)


def warm(size):
    """Touches as much memory as a copy of `size` bytes takes, and gives it back. A virtual machine's host takes free
    memory away within seconds, and the first touch of each page then costs several times what copying it does: the
    first to copy would pay for those after it."""
    with mmap.mmap(-1, 2 * size + (1 << 30), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | mmap.MAP_POPULATE):
        pass


def timed(*words, size=0, **kw):
    """Seconds of a command that copies `size` bytes, and of making its result durable."""
    os.sync()
    warm(size)
    start = time.monotonic()
    kw.setdefault("stdout", subprocess.DEVNULL)
    run(*words, **kw)
    os.sync()
    return time.monotonic() - start


def tree_bytes(path):
    return sum(os.path.getsize(os.path.join(d, f)) for d, _, fs in os.walk(path) for f in fs)


def same(a, b):
    """The two trees are equal, compared by a program of its own."""
    done = subprocess.run([TREECHECK, a, b], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if done.returncode != 0:
        raise Failed("the trees differ: " + done.stdout[-500:])


def small_files(path, count):
    """Files of 1 to 8 KiB that do not compress, 200 to a directory."""
    rng = random.Random(4)
    for i in range(count):
        if i % 200 == 0:
            where = os.path.join(path, "d%d" % (i // 200))
            os.makedirs(where)
        with open("%s/%d" % (where, i), "wb") as f:
            f.write(rng.randbytes(rng.randrange(1024, 8192)))


def program(name, *libs):
    out = os.path.join(work, "tool-" + name)
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


def lsn(text):
    hi, lo = text.split("/")
    return int(hi, 16) << 32 | int(lo, 16)


class Node:
    """A towline process with a state directory, and a data directory that may be another's."""

    def __init__(self, home, upstream=None, data=None, port=None, **config):
        self.home, self.upstream, self.port = home, upstream, port or free_port()
        self.data, self.state = data or os.path.join(home, "data"), os.path.join(home, "state")
        os.makedirs(home, exist_ok=True)
        os.makedirs(self.data, exist_ok=True)
        self.file = os.path.join(home, "towline.toml")
        with open(self.file, "w") as f:
            for key, value in config.items():
                f.write("%s = %s\n" % (key, json.dumps(value)))
        # Whom it may follow is in its file.
        self.listed, self.process = "leader" in config, None
        self.start()

    @property
    def pid(self):
        return self.process.pid

    def start(self):
        words = [TOWLINE, "follower" if self.upstream else "leader", "--data", self.data, "--state", self.state]
        words += ["--listen", "127.0.0.1:%d" % self.port, "--config", self.file]
        if self.upstream:
            words += ["--name", os.path.basename(self.home)]
            if not self.listed:
                words += ["--leader", "127.0.0.1:%d" % self.upstream.port]
        with open(os.path.join(self.home, "log.txt"), "ab") as log:
            self.process = subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        if self not in nodes:
            nodes.append(self)

    def stop(self):
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(60)
            except subprocess.TimeoutExpired:
                self.kill()
                raise Failed("%s did not stop within 60 s" % self.home) from None

    def kill(self):
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()

    def status(self):
        """The answer of the control socket; None while nobody listens there."""
        try:
            with socket.socket(socket.AF_UNIX) as s:
                s.settimeout(30)
                s.connect(os.path.join(self.state, "control.sock"))
                s.sendall(b'{"command":"status"}\n')
                line = b""
                while not line.endswith(b"\n"):
                    piece = s.recv(1 << 20)
                    if not piece:
                        return None
                    line += piece
                return json.loads(line)
        except OSError:
            return None

    def until(self, what, test, limit=600, pause=0.01):
        end = time.monotonic() + limit
        status = None
        while time.monotonic() < end:
            if self.process.poll() is not None:
                raise Failed("%s ended: %s" % (os.path.basename(self.home), self.last_words()))
            status = self.status() or status
            if status and test(status):
                return status
            time.sleep(pause)
        raise Failed("%s: not within %d s: %s; %s" % (os.path.basename(self.home), limit, what, status))

    def last_words(self):
        with open(os.path.join(self.home, "log.txt"), errors="replace") as f:
            return f.read()[-500:]

    def cpu(self):
        """Seconds of processor time, all threads, to the nanosecond."""
        # The clock of a process, as clock_getcpuclockid(3) makes its number.
        return time.clock_gettime((~self.pid << 3) | 2)

    def memory(self, key="VmRSS"):
        """MB."""
        with open("/proc/%d/status" % self.pid) as f:
            return next(int(line.split()[1]) for line in f if line.startswith(key + ":")) * 1024 / 1e6

    def log_bytes(self):
        return tree_bytes(os.path.join(self.state, "log"))

    def end(self):
        return lsn(self.until("log", lambda s: s.get("log"))["log"]["end"])


def ready(status):
    return status.get("state") == "running" and not status.get("error")


def hashed(status):
    return ready(status) and status["capture"]["unhashed_files"] == 0


def applied(status):
    """Where the follower's directory stands; 0 while it is not usable."""
    apply = status.get("apply") or {}
    return lsn(apply["lsn"]) if apply.get("consistent") and apply.get("lsn") else 0


def settled(leader, follower):
    """Waits until the follower has applied all that the leader's log holds, twice in a row."""
    for _ in range(2):
        end = lsn(leader.until("cuts", lambda s: s["log"].get("exact"))["log"]["exact"])
        follower.until("applied", lambda s, end=end: applied(s) >= end)
        time.sleep(0.3)


def pair(name, data=None, cuts="exact", **config):
    """A leader and a follower that holds the same."""
    # Hashing what was there before is no part of any figure: it goes as fast as it can.
    config.setdefault("scrub_rate", "16G")
    leader = Node(os.path.join(work, name, "leader"), data=data, **config)
    leader.until("hashed", hashed, pause=0.05)
    follower = Node(os.path.join(work, name, "follower"), leader, apply_cuts=cuts)
    follower.until("filled", lambda s: ready(s) and applied(s))
    return leader, follower


def load():
    with open("/proc/loadavg") as f:
        return float(f.read().split()[0])
