"""Base backups and restores: against pg_basebackup, pgBackRest, restic, rsync, tar with zstd, and PostgreSQL's own replay."""
import json
import os
import random
import shutil
import subprocess
import sys
import threading
import time

import bed
import peers
import resync
import tls
from bed import MIB, TOWLINE, Node, hashed, median, run, same, timed

def has(command, flag):
    """Whether this build's command knows a flag."""
    said = subprocess.run([TOWLINE, command, "--help"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    return said.returncode == 0 and flag in said.stdout


class Cost:
    """What a command took: seconds, until its result was durable too; seconds of its own processor time; its peak of memory
    and what went over the loopback, in bytes."""

    def __init__(self, words, size, **kw):
        kw.setdefault("stdout", subprocess.DEVNULL)
        kw.setdefault("stderr", subprocess.DEVNULL)
        os.sync()
        bed.warm(size)
        sent, start = self.sent(), time.monotonic()
        process, self.memory = subprocess.Popen(list(words), **kw), 0
        watch = threading.Thread(target=self.watch, args=[process.pid])
        watch.start()
        _, status, used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        os.sync()
        self.seconds = time.monotonic() - start
        if process.returncode != 0:
            raise bed.Failed("%s: exit code %d" % (" ".join(words), process.returncode))
        watch.join()
        self.cpu = used.ru_utime + used.ru_stime
        self.wire = self.sent() - sent

    def watch(self, pid):
        """Its peak of memory, and that of its children; what wait4 tells of is not less than this process had."""
        while True:
            try:
                with open("/proc/%d/task/%d/children" % (pid, pid)) as f:
                    family = [pid, *map(int, f.read().split())]
                for one in family:
                    with open("/proc/%d/status" % one) as f:
                        peak = [int(line.split()[1]) * 1024 for line in f if line.startswith("VmHWM")]
                    self.memory = max([self.memory, *peak])
            except OSError:
                return
            time.sleep(0.02)

    @staticmethod
    def sent():
        with open("/sys/class/net/lo/statistics/tx_bytes") as f:
            return int(f.read())

    def __str__(self):
        return "%.2f s, %.2f s of CPU, peak %.0f MB, %.0f MB on the wire" % (
            self.seconds, self.cpu, self.memory / 1e6, self.wire / 1e6)


def typical(costs):
    """The one of median duration."""
    return sorted(costs, key=lambda c: c.seconds)[len(costs) // 2]


def backup_of(leader, target, *flags):
    """What a backup costs; `-`: a tar stream that nobody keeps."""
    words = [TOWLINE, "basebackup", "--leader", "127.0.0.1:%d" % leader.port, "--out", target, *flags]
    return Cost(words, bed.tree_bytes(leader.data))


def taken(leader, target, *flags):
    """Seconds of a backup in form tree."""
    return backup_of(leader, target, *flags).seconds


def restic(source, target):
    env = dict(os.environ, RESTIC_REPOSITORY=target, RESTIC_PASSWORD="x", RESTIC_CACHE_DIR=target + ".cache")
    run("restic", "init", env=env, stdout=subprocess.DEVNULL)
    took = timed("restic", "backup", source, env=env, size=bed.tree_bytes(source))
    bed.remove(target + ".cache")
    return took


def pgbackrest(cluster):
    """pgBackRest's full backup of a running cluster."""
    def back(_, target):
        os.makedirs(target)
        shutil.chown(target, "postgres", "postgres")
        cluster.up()
        words = ["pgbackrest", "--stanza=b", "--repo1-path=" + target, "--pg1-path=" + cluster.data,
                 "--pg1-socket-path=" + cluster.home, "--pg1-port=%d" % cluster.port, "--log-level-file=off",
                 "--no-archive-check", "--compress-type=zst", "--compress-level=1"]
        line = ["runuser", "-u", "postgres", "--"] if os.geteuid() == 0 else []
        run(*line, *words[:-3], "--no-online", "stanza-create", stdout=subprocess.DEVNULL)
        took = timed(*line, *words, "--type=full", "backup", size=bed.tree_bytes(cluster.data))
        cluster.down()
        return took
    return back


class Offline:
    """pgBackRest's backups of a cluster that does not run: full, then incremental."""

    def __init__(self, cluster, repo):
        os.makedirs(repo)
        shutil.chown(repo, "postgres", "postgres")
        line = ["runuser", "-u", "postgres", "--"] if os.geteuid() == 0 else []
        self.repo, self.cluster = repo, cluster
        self.words = [*line, "pgbackrest", "--stanza=b", "--repo1-path=" + repo, "--pg1-path=" + cluster.data,
                      "--log-level-file=off", "--no-online"]
        run(*self.words, "stanza-create", stdout=subprocess.DEVNULL)

    def backup(self, kind):
        """Seconds, and bytes that the repository grew by."""
        before = bed.tree_bytes(self.repo)
        took = timed(*self.words, "--compress-type=zst", "--compress-level=1", "--type=" + kind, "backup",
                     size=bed.tree_bytes(self.cluster.data))
        return took, bed.tree_bytes(self.repo) - before


def others(cluster=None):
    out = {"rsync -a": peers.rsync, "tar, zstd -1": peers.tar}
    if cluster:
        out["pg_basebackup"] = cluster.basebackup
        if shutil.which("pgbackrest"):
            out["pgBackRest"] = pgbackrest(cluster)
    if shutil.which("restic"):
        out["restic"] = restic
    return out


def compared(name, leader, rivals, rounds, row, than=None):
    """One row: a backup in form tree beside its rivals, in turn; it is to be no slower than those of `than`, or than all."""
    home = os.path.dirname(leader.home)
    target, times = os.path.join(home, "target"), {}
    size = bed.tree_bytes(leader.data)
    for n in range(rounds):
        turn = ["towline", *rivals]
        turn = turn[n % len(turn):] + turn[: n % len(turn)]
        for tool in turn:
            took = taken(leader, target) if tool == "towline" else rivals[tool](leader.data, target)
            if tool == "towline" and n == 0:
                same(leader.data, os.path.join(target, "data"))
            bed.remove(target)
            times.setdefault(tool, []).append(took)
            print("  %s: %.2f s" % (tool, took), file=sys.stderr, flush=True)
    own = median(times.pop("towline"))
    judges = [t for t in times if than is None or t in than]
    best = min(judges, key=lambda t: median(times[t]))
    return row(
        name,
        "%.2f s, %.0f MB/s" % (own, size / 1e6 / own),
        "no slower than the fastest" + (" of " + ", ".join(judges) if than else ""), "",
        [(own / median(times[best]), 1, None)],
        ", ".join("%s %.2f s" % (t, median(v)) for t, v in times.items()),
        "%s %.2fx" % (best, median(times[best]) / own),
    )


def leader_on(home, data):
    leader = Node(os.path.join(home, "leader"), data=data, scrub_rate="16G", keep_segments=100000, tls="off",
                  name="alpha")
    leader.until("hashed", hashed, limit=1800, pause=0.05)
    return leader


PG_FORMS = {"plain": ["-F", "p", "-X", "stream"], "tar to /dev/null": ["-F", "t", "-X", "fetch"]}


def beside(cluster, form, target):
    """pg_basebackup with the same sums: SHA-256 of each file. Its tar goes to standard output."""
    if form == "plain":
        os.makedirs(target)
        shutil.chown(target, "postgres", "postgres")
    out = target if form == "plain" else "-"
    line, kw = cluster.words("pg_basebackup", "-D", out, "-c", "fast", "--manifest-checksums=SHA256", *PG_FORMS[form])
    cost = Cost(line, bed.tree_bytes(cluster.data), **kw)
    bed.remove(target)
    return cost


def forms(leader, cluster, rounds, row):
    """Plain and tar beside pg_basebackup on the same options, in turn; what TLS adds."""
    home, rows = os.path.dirname(leader.home), []
    target = os.path.join(home, "target")
    for form, out in [("plain", target), ("tar to /dev/null", "-")]:
        own, theirs = [], []
        for _ in range(rounds):
            own.append(backup_of(leader, out))
            bed.remove(target)
            cluster.up()
            theirs.append(beside(cluster, form, target))
            cluster.down()
        a, b = typical(own), typical(theirs)
        rows.append(row("base backup, %s" % form, str(a), "no slower than pg_basebackup", "1.5x faster",
                        [(a.seconds / b.seconds, 1, 1 / 1.5)], "pg_basebackup, SHA-256: %s" % b,
                        "%.2fx" % (b.seconds / a.seconds)))
    return rows


def secure(leader):
    """Flags of a backup over TLS: a key of its own, and the two commands."""
    state = os.path.join(os.path.dirname(leader.home), "keeper")
    os.makedirs(state, exist_ok=True)
    quiet = {"stdout": subprocess.DEVNULL}
    run(TOWLINE, "trust", "keeper", tls.key(state), "--state", leader.state, "--role", "backup", **quiet)
    run(TOWLINE, "trust", "alpha", tls.key(leader.state), "--state", state, "--role", "leader", **quiet)
    return ["--tls", "on", "--state", state, "--name", "keeper"]


def of_postgres(scaled, rounds, row):
    home = os.path.join(bed.work, "backup-pg")
    cluster = peers.Postgres(home, scaled(135, 8))
    leader = leader_on(home, cluster.data)
    rows = forms(leader, cluster, rounds, row)
    rows.append(compared("base backup, PostgreSQL %.1f GiB" % (bed.tree_bytes(cluster.data) / (1 << 30)), leader,
                         others(cluster), rounds, row))
    plain = typical([backup_of(leader, "-") for _ in range(rounds)])
    tls.lead(leader, "on")
    flags = secure(leader)
    sealed = typical([backup_of(leader, "-", *flags) for _ in range(rounds)])
    leader.stop()
    rows.append(row("base backup, tar to /dev/null, with TLS", str(sealed), "60 % of plain", "",
                    [(-plain.seconds / sealed.seconds, -0.6, None)], "without: %s" % plain,
                    "%.0f %% of plain" % (100 * plain.seconds / sealed.seconds)))
    return rows


def of_small(scaled, rounds, row):
    home = os.path.join(bed.work, "backup-small")
    data, count = os.path.join(home, "source"), scaled(100000)
    bed.small_files(data, count)
    leader = leader_on(home, data)
    rows = [compared("base backup, %d small files" % count, leader, others(), rounds, row,
                     ["rsync -a", "restic"])]
    leader.stop()
    return rows


def touch_blocks(data, seed):
    """Gives one block in a hundred of the tables of a cluster that does not run another content. Their bytes."""
    rng, changed = random.Random(seed), 0
    for directory, _, names in os.walk(os.path.join(data, "base")):
        for name in sorted(names):
            path = os.path.join(directory, name)
            blocks = os.path.getsize(path) // resync.BLOCK
            if blocks < 100:
                continue
            with open(path, "r+b") as f:
                for block in rng.sample(range(blocks), blocks // 100):
                    f.seek(block * resync.BLOCK)
                    f.write(os.urandom(resync.BLOCK))
                    changed += resync.BLOCK
    return changed


def incremental(scaled, rounds, row):
    home = os.path.join(bed.work, "incremental")
    cluster = peers.Postgres(home, scaled(135, 8))
    leader = leader_on(home, cluster.data)
    full, own, theirs, ratios = os.path.join(home, "full"), [], [], []
    taken(leader, full)
    other = Offline(cluster, os.path.join(home, "repo")) if shutil.which("pgbackrest") else None
    if other:
        other.backup("full")
    for n in range(rounds):
        # Against the full one each time: what changed since is the sum.
        changed = touch_blocks(cluster.data, n) * (n + 1)
        leader.until("hashed", hashed, pause=0.05)
        target = os.path.join(home, "step")
        own.append(taken(leader, target, "--incremental", full))
        ratios.append(bed.tree_bytes(target) / changed)
        bed.remove(target)
        if other:
            theirs.append(other.backup("incr"))
    leader.stop()
    a, size = median(own), bed.tree_bytes(cluster.data)
    checks, said, ratio = [(max(ratios), 1.2, None)], "", ""
    if other:
        b = median([t for t, _ in theirs])
        checks.append((a / b, 1, None))
        said, ratio = "pgBackRest incr %.2f s, %.1f MB" % (b, median([n for _, n in theirs]) / 1e6), "%.2fx" % (b / a)
    return [row("incremental backup, 1 %% of the blocks of %.1f GiB changed" % (size / (1 << 30)),
                "%.2f s, %.2fx the bytes that changed" % (a, median(ratios)),
                "1.2x the bytes, no slower than pgBackRest", "", checks, said, ratio)]


class Replay:
    """PostgreSQL's way to the same state: the base, and its log over it."""

    def __init__(self, cluster):
        self.cluster, self.wal = cluster, os.path.join(cluster.home, "wal")
        os.makedirs(self.wal)
        shutil.chown(self.wal, "postgres", "postgres")
        with open(cluster.data + "/postgresql.conf", "a") as f:
            f.write("archive_mode = on\narchive_command = 'cp %%p %s/%%f'\n" % self.wal)

    def run(self, base):
        """Seconds from a copied base to the end of its recovery."""
        target, cluster = os.path.join(self.cluster.home, "replayed"), self.cluster
        os.sync()
        start = time.monotonic()
        run("cp", "-a", base, target)
        os.chmod(target, 0o700)
        with open(target + "/postgresql.auto.conf", "a") as f:
            f.write("restore_command = 'cp %s/%%f %%p'\nrecovery_target_timeline = 'current'\narchive_mode = off\n" % self.wal)
        open(target + "/recovery.signal", "w").close()
        shutil.chown(target + "/recovery.signal", "postgres", "postgres")
        cluster.call("pg_ctl", "start", "-w", "-t", "1800", "-D", target, "-l", cluster.home + "/replay.log",
                     "-o", "-p %d" % bed.free_port())
        while True:
            line, kw = cluster.words("pg_controldata", "-D", target)
            kw["stdout"] = subprocess.PIPE
            if b"in production" in subprocess.run(line, check=True, **kw).stdout:
                break
            time.sleep(0.02)
        os.sync()
        took = time.monotonic() - start
        cluster.call("pg_ctl", "stop", "-w", "-m", "fast", "-D", target)
        bed.remove(target)
        return took


def restored(scaled, rounds, row):
    home = os.path.join(bed.work, "restore")
    cluster = peers.Postgres(home, scaled(135, 8))
    replay = Replay(cluster)
    base, theirs_base = os.path.join(home, "base"), os.path.join(home, "pg-base")
    cluster.basebackup(None, theirs_base)
    leader = leader_on(home, cluster.data)
    taken(leader, base)
    cluster.up()
    # Full pages and new rows: log of about the size of the tables.
    cluster.call("psql", "-c", "update pgbench_accounts set abalance = 1 where aid % 3 = 0")
    cluster.call("psql", "-c", "select pg_switch_wal()")
    cluster.down()
    said = run(TOWLINE, "restore-point", "end", "--state", leader.state, "--json", stdout=subprocess.PIPE, text=True)
    point = json.loads(said.stdout)["lsn"]
    own, theirs = [], []
    out = os.path.join(home, "out")
    for n in range(rounds):
        own.append(timed(TOWLINE, "restore", "--from", base, "--log", leader.state, "--target", point, "--out", out,
                         size=bed.tree_bytes(cluster.data), stderr=subprocess.DEVNULL))
        if n == 0:
            same(cluster.data, out)
        bed.remove(out)
        theirs.append(replay.run(theirs_base))
    leader.stop()
    a, b = median(own), median(theirs)
    held, log, wal = bed.tree_bytes(base), bed.tree_bytes(leader.state + "/log"), bed.tree_bytes(replay.wal)
    return [row("restore, base of %.1f GiB and %.1f GiB of log" % (held / (1 << 30), log / (1 << 30)),
                "%.2f s, %.0f MB/s" % (a, (held + log) / 1e6 / a),
                "no slower than PostgreSQL's recovery", "", [(a / b, 1, None)],
                "copy and recovery %.2f s, %.1f GiB of WAL" % (b, wal / (1 << 30)),
                "PostgreSQL %.2fx" % (b / a))]


def verified(scaled, rounds, row):
    if not has("verify", "--"):
        raise bed.Failed("this build has no verify")
    home = os.path.join(bed.work, "verify")
    data, size = os.path.join(home, "source"), scaled(2048) * MIB // resync.FILE * resync.FILE
    resync.furnish(data, size)
    leader = leader_on(home, data)
    target = os.path.join(home, "backup")
    taken(leader, target)
    leader.stop()
    own, theirs, slow = [], [], []
    list_of = "find '%s' -type f -print0 | xargs -0 " % target
    for _ in range(rounds):
        own.append(timed(TOWLINE, "verify", target, size=size))
        # SHA-256 alone as fast as these processors do it, on two of them.
        theirs.append(timed("sh", "-c", list_of + "-P 2 -n 4 openssl dgst -sha256", size=size))
        slow.append(timed("sh", "-c", list_of + "sha256sum", size=size))
    a, b, c = median(own), median(theirs), median(slow)
    return [row("verify, %.1f GiB" % (size / (1 << 30)), "%.2f s, %.0f MB/s" % (a, size / 1e6 / a),
                "80 % of SHA-256 alone on 2 cores", "", [(a / b, 1 / 0.8, None)],
                "openssl, two at once %.2f s, sha256sum %.2f s" % (b, c), "%.2fx, sha256sum %.2fx" % (b / a, c / a))]
