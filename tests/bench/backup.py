"""Base backups and restores: against pg_basebackup, pgBackRest, restic, rsync, tar with zstd, and PostgreSQL's own replay."""
import json
import os
import shutil
import subprocess
import sys
import time

import bed
import peers
import resync
from bed import MIB, Node, hashed, median, run, same, timed

TOWLINE = bed.TOWLINE


def has(command, flag):
    """Whether this build's command knows a flag."""
    said = subprocess.run([TOWLINE, command, "--help"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    return said.returncode == 0 and flag in said.stdout


def taken(leader, target, *flags):
    """Seconds of a backup in form tree."""
    words = [TOWLINE, "basebackup", "--leader", "127.0.0.1:%d" % leader.port, "--out", target, *flags]
    return timed(*words, size=bed.tree_bytes(leader.data), stderr=subprocess.DEVNULL)


def streamed(leader):
    """Seconds of a backup as a tar stream that nobody keeps."""
    words = [TOWLINE, "basebackup", "--leader", "127.0.0.1:%d" % leader.port, "--out", "-"]
    return timed(*words, size=bed.tree_bytes(leader.data), stderr=subprocess.DEVNULL)


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
        run(*line, *words, "--no-online", "stanza-create", stdout=subprocess.DEVNULL)
        took = timed(*line, *words, "--type=full", "backup", size=bed.tree_bytes(cluster.data))
        cluster.down()
        return took
    return back


def others(cluster=None):
    out = {"rsync -a": peers.rsync, "tar, zstd -1": peers.tar}
    if cluster:
        out["pg_basebackup"] = cluster.basebackup
        if shutil.which("pgbackrest"):
            out["pgBackRest"] = pgbackrest(cluster)
    if shutil.which("restic"):
        out["restic"] = restic
    return out


def compared(name, leader, rivals, rounds, row):
    """One row: a backup in form tree beside its rivals, in turn."""
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
        if has("basebackup", "`-`"):
            times.setdefault("tar to nowhere", []).append(streamed(leader))
    own = median(times.pop("towline"))
    stream = times.pop("tar to nowhere", None)
    best = min(times, key=lambda t: median(times[t]))
    return row(
        name,
        "%.2f s, %.0f MB/s" % (own, size / 1e6 / own)
        + ("; as a stream %.2f s" % median(stream) if stream else ""),
        "no slower than the fastest", "",
        [(own / median(times[best]), 1, None)],
        ", ".join("%s %.2f s" % (t, median(v)) for t, v in times.items()),
        "%s %.2fx" % (best, median(times[best]) / own),
    )


def leader_on(home, data, **config):
    leader = Node(os.path.join(home, "leader"), data=data, scrub_rate="16G", keep_segments=100000, tls="off", **config)
    leader.until("hashed", hashed, limit=1800, pause=0.05)
    return leader


def of_postgres(scaled, rounds, row):
    home = os.path.join(bed.work, "backup-pg")
    cluster = peers.Postgres(home, scaled(135, 8))
    leader = leader_on(home, cluster.data)
    rows = [compared("base backup, PostgreSQL %.1f GiB" % (bed.tree_bytes(cluster.data) / (1 << 30)), leader,
                     others(cluster), rounds, row)]
    leader.stop()
    return rows


def of_small(scaled, rounds, row):
    home = os.path.join(bed.work, "backup-small")
    data, count = os.path.join(home, "source"), scaled(100000)
    bed.small_files(data, count)
    leader = leader_on(home, data)
    rows = [compared("base backup, %d small files" % count, leader, others(), rounds, row)]
    leader.stop()
    return rows


def incremental(scaled, rounds, row):
    if not has("basebackup", "--incremental"):
        raise bed.Failed("this build has no incremental backups")
    home = os.path.join(bed.work, "incremental")
    data, size = os.path.join(home, "source"), scaled(2048) * MIB // resync.FILE * resync.FILE
    resync.furnish(data, size)
    leader = leader_on(home, data)
    full, took = os.path.join(home, "full"), []
    taken(leader, full)
    for n in range(rounds):
        changed = resync.change(data, n)
        leader.until("hashed", hashed, pause=0.05)
        target = os.path.join(home, "step")
        took.append((taken(leader, target, "--incremental", full), bed.tree_bytes(target)))
        bed.remove(target)
    own, stored = median([t for t, _ in took]), median([b for _, b in took])
    mirror = os.path.join(home, "mirror")
    run("cp", "-a", full + "/data", mirror)
    resync.change(data, rounds)
    theirs = timed("rsync", "-a", "--inplace", "--delete", data + "/", mirror + "/", size=size)
    leader.stop()
    return [row("incremental backup, 1 %% of %.1f GiB changed" % (size / (1 << 30)),
                "%.2f s, %.1f MB for %.1f MB that changed" % (own, stored / 1e6, changed / 1e6),
                "no slower than rsync", "", [(own / theirs, 1, None)], "rsync %.2f s" % theirs,
                "rsync %.2fx" % (theirs / own))]


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
    cluster.call("pgbench", "-n", "-c", "4", "-t", str(scaled(20000)))
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
    return [row("restore, %.1f GiB and the log of pgbench" % (bed.tree_bytes(base) / (1 << 30)), "%.2f s" % a,
                "no slower than PostgreSQL's recovery", "", [(a / b, 1, None)], "copy and recovery %.2f s" % b,
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
    own, theirs = [], []
    for _ in range(rounds):
        own.append(timed(TOWLINE, "verify", target, size=size))
        theirs.append(timed("sh", "-c", "find '%s' -type f -print0 | xargs -0 sha256sum" % target, size=size))
    a, b = median(own), median(theirs)
    return [row("verify, %.1f GiB" % (size / (1 << 30)), "%.2f s, %.0f MB/s" % (a, size / 1e6 / a),
                "no slower than sha256sum", "", [(a / b, 1, None)], "sha256sum %.2f s" % b, "sha256sum %.2fx" % (b / a))]
