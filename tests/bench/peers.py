"""The programs that towline is measured against. Each leaves a complete, durable copy."""
import os
import shutil
import socket
import subprocess
import time

import bed
from bed import run, timed


def rsync(source, target, *flags):
    """rsync -a into an rsync daemon on loopback."""
    port, conf = bed.free_port(), target + ".rsyncd"
    os.makedirs(target)
    with open(conf, "w") as f:
        f.write("uid = root\ngid = root\nuse chroot = no\n[t]\npath = %s\nread only = no\n" % target)
    words = ["rsync", "--daemon", "--no-detach", "--config", conf, "--address", "127.0.0.1", "--port", str(port)]
    daemon = subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    bed.closers.append(daemon.kill)
    try:
        until_open(port)
        words = ["rsync", "-a", *flags, source + "/", "rsync://127.0.0.1:%d/t/" % port]
        return timed(*words, size=bed.tree_bytes(source))
    finally:
        daemon.terminate()
        daemon.wait()


def until_open(port):
    for _ in range(500):
        with socket.socket() as s:
            if s.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.01)
    raise bed.Failed("nobody listens on port %d" % port)


def tar(source, target):
    """tar - zstd -1 - TCP on loopback - zstd -d - untar."""
    os.makedirs(target)
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        out = socket.create_connection(listener.getsockname())
        into, _ = listener.accept()
    os.sync()
    bed.warm(bed.tree_bytes(source))
    start = time.monotonic()
    send = subprocess.Popen(["sh", "-c", 'tar -C "$1" -cf - . | zstd -1 -q', "sh", source], stdout=out)
    take = subprocess.Popen(["sh", "-c", 'zstd -dq | tar -C "$1" -xpf -', "sh", target], stdin=into)
    out.close()
    into.close()
    if send.wait() or take.wait():
        raise bed.Failed("tar failed")
    os.sync()
    return time.monotonic() - start


def cp(source, target):
    return timed("cp", "-a", source, target, size=bed.tree_bytes(source))


COPIES = {
    "rsync -a zstd": lambda s, t: rsync(s, t, "--compress", "--compress-choice=zstd", "--compress-level=1"),
    "rsync -a": rsync,
    "tar, zstd -1, untar": tar,
    "cp -a + sync": cp,
}


class Postgres:
    """A cluster with a database of pgbench; it runs only while a base backup is made."""

    def __init__(self, home, scale):
        base = sorted(os.listdir("/usr/lib/postgresql"), key=int)[-1]
        self.tools, self.port = "/usr/lib/postgresql/%s/bin/" % base, bed.free_port()
        self.home, self.data = home, os.path.join(home, "pg")
        os.makedirs(self.data)
        os.chmod(home, 0o755)
        shutil.chown(home, "postgres", "postgres")
        shutil.chown(self.data, "postgres", "postgres")
        self.call("initdb", "-A", "trust", "-N", "-k", "-D", self.data)
        with open(self.data + "/postgresql.conf", "a") as f:
            f.write("listen_addresses = ''\nunix_socket_directories = '%s'\nwal_level = replica\n" % home)
            f.write("max_wal_size = '256MB'\nautovacuum = off\n")
        self.up()
        self.call("pgbench", "-i", "-q", "-s", str(scale))
        self.call("psql", "-c", "checkpoint")
        self.down()

    def words(self, name, *words):
        env = dict(os.environ, PGHOST=self.home, PGPORT=str(self.port), PGDATABASE="postgres", LC_ALL="C")
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "stdin": subprocess.DEVNULL}
        line = [self.tools + name, *words]
        if os.geteuid() == 0:
            line = ["runuser", "-u", "postgres", "--", *line]
        return line, dict(quiet, env=env, cwd="/")

    def call(self, name, *words):
        line, kw = self.words(name, *words)
        run(*line, **kw)

    def up(self):
        bed.closers.append(self.down)
        self.call("pg_ctl", "start", "-w", "-D", self.data, "-l", self.home + "/pg.log", "-o", "-p %d" % self.port)

    def down(self):
        line, kw = self.words("pg_ctl", "stop", "-w", "-m", "fast", "-D", self.data)
        subprocess.run(line, check=False, **kw)

    def basebackup(self, _, target):
        """pg_basebackup as it comes: with the log that makes the copy consistent, synced at the end."""
        self.up()
        os.makedirs(target)
        shutil.chown(target, "postgres", "postgres")
        line, kw = self.words("pg_basebackup", "-D", target, "-c", "fast")
        took = timed(*line, size=bed.tree_bytes(self.data), **kw)
        self.down()
        return took


class Lsyncd:
    """lsyncd without delay, from HOME/a to HOME/b."""

    def __init__(self, home):
        self.source, self.target = os.path.join(home, "a"), os.path.join(home, "b")
        for d in [self.source, self.target]:
            os.makedirs(d)
        conf = os.path.join(home, "conf.lua")
        with open(conf, "w") as f:
            f.write("settings{nodaemon=true}\nsync{default.rsync, source=\"%s\", target=\"%s\", delay=0}\n"
                    % (self.source, self.target))
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "stdin": subprocess.DEVNULL}
        self.process = subprocess.Popen(["lsyncd", conf], **quiet)
        bed.closers.append(self.stop)
        time.sleep(2)

    def stop(self):
        if self.process.poll() is None:
            self.process.terminate()
            self.process.wait()
