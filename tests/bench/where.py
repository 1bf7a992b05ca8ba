"""Where the time goes: samples of the processors and the time of syncs, taken by perf of all processes, told
apart by process id. Without perf (or the right to use it) only the seconds of /proc are shown."""
import collections
import os
import select
import shutil
import signal
import subprocess
import time

import bed

HERTZ = 199
SYNCS = ["fsync", "fdatasync", "syncfs"]
# The first match names the kind; what is in the kernel is a system call, or an interrupt.
KINDS = [
    ("hash", ("xxh", "XXH")),
    ("sha256", ("sha256", "sha2::", "digest_blocks")),
    ("crc", ("crc32",)),
    ("zstd", ("ZSTD", "HUF_", "HUFv", "FSE_", "HIST_", "zstd")),
    ("memcpy", ("memcpy", "memmove", "memset", "__mem")),
]


def kind(address, symbol):
    # The rep movs of the kernel's copy_to_user is the copy of a read or a write, and worth a name of its own.
    if address.startswith("ffff") and len(address) == 16:
        return "copy in kernel" if "copy_user" in symbol or "rep_movs" in symbol else "kernel"
    return next((name for name, words in KINDS if any(w in symbol for w in words)), "other")


class Where:
    """with Where(): ...; then say(node, ...)."""

    def __init__(self):
        self.samples = collections.defaultdict(collections.Counter)
        self.syncs = collections.defaultdict(list)
        self.seconds = 0.0
        self.perf = None

    def __enter__(self):
        self.data = os.path.join(bed.work, "perf.data")
        if shutil.which("perf") and os.geteuid() == 0:
            events = [w for s in SYNCS for w in ("-e", "syscalls:sys_enter_" + s, "-e", "syscalls:sys_exit_" + s)]
            # Recording begins when perf says so, not a while after it was started.
            control, answer = (os.path.join(bed.work, name) for name in ("perf.ctl", "perf.ack"))
            for path in [control, answer]:
                os.mkfifo(path)
            ends = [os.open(path, os.O_RDWR) for path in (control, answer)]
            clock = "cpu-clock/freq=%d/" % HERTZ
            words = ["perf", "record", "-q", "-a", "-c", "1", "-e", clock, *events, "-o", self.data]
            words += ["-D", "-1", "--control", "fifo:%s,%s" % (control, answer)]
            quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "stdin": subprocess.DEVNULL}
            self.perf = subprocess.Popen(words, **quiet)
            bed.closers.append(self.end)
            os.write(ends[0], b"enable\n")
            if not select.select(ends[1:], [], [], 20)[0]:
                self.end()
                self.perf = None
            for path, fd in zip([control, answer], ends):
                os.close(fd)
                os.unlink(path)
        self.start = time.monotonic()
        return self

    def end(self):
        if self.perf and self.perf.poll() is None:
            self.perf.send_signal(signal.SIGINT)
            self.perf.wait()

    def __exit__(self, *what):
        self.seconds = time.monotonic() - self.start
        if not self.perf:
            return
        self.end()
        words = ["perf", "script", "-i", self.data, "-F", "pid,tid,time,event,ip,sym"]
        out = subprocess.run(words, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, errors="replace")
        begun = {}
        for line in out.stdout.splitlines():
            self.line(line.split(None, 4), begun)
        os.unlink(self.data)

    def line(self, words, begun):
        # PID/TID TIME: EVENT: ADDRESS SYMBOL
        if len(words) < 4 or "/" not in words[0]:
            return
        pid, tid = words[0].split("/")
        event = words[2]
        if event.startswith("cpu-clock"):
            self.samples[int(pid)][kind(words[3], words[4] if len(words) > 4 else "")] += 1
        elif "sys_enter_" in event:
            begun[tid] = float(words[1].rstrip(":"))
        elif "sys_exit_" in event and tid in begun:
            self.syncs[int(pid)].append(float(words[1].rstrip(":")) - begun.pop(tid))

    def say(self, *nodes):
        """One clause per node."""
        return "; ".join(filter(None, (self.of(node) for node in nodes)))

    def of(self, node):
        name, samples, syncs = os.path.basename(node.home), self.samples[node.pid], self.syncs[node.pid]
        total = sum(samples.values())
        if not self.perf:
            return "%s %.2f s of CPU since its start" % (name, node.cpu())
        shares = ", ".join("%s %.0f %%" % (k, n * 100 / total) for k, n in samples.most_common() if n * 50 > total)
        text = "%s %.2f s of CPU (%s)" % (name, total / HERTZ, shares)
        if syncs:
            text += ", %d syncs %.2f s (median %.1f ms)" % (len(syncs), sum(syncs), bed.median(syncs) * 1e3)
        return text
