#!/usr/bin/python3
"""Makes every kind of object below a directory: objects.py DIR [--root]"""
import os
import random
import socket
import subprocess
import sys


def deep(root):
    """50 directories deep, close to the longest path that the kernel takes."""
    fd = os.open(root, os.O_RDONLY)
    for i in range(50):
        name = (b"%02d" % i).ljust(70, b"d")
        os.mkdir(name, dir_fd=fd)
        nxt = os.open(name, os.O_RDONLY | os.O_DIRECTORY, dir_fd=fd)
        os.close(fd)
        fd = nxt
    out = os.open(b"bottom", os.O_WRONLY | os.O_CREAT, dir_fd=fd)
    os.write(out, b"found me")
    os.close(out)
    os.close(fd)


def names(root):
    for i, name in enumerate(
        [
            b"a" * 255,
            b"\xff\xfe not utf-8 \x80",
            b"new\nline",
            b" leading and trailing ",
            b"-rf",
            b"*?[x]$(y)`z`'\"\\",
            b"\x01\x02\x7f",
            "\u00e9".encode(),
            "e\u0301".encode(),
            b".hidden",
            b"..more",
            b".towline-stage-not",
        ]
    ):
        with open(os.path.join(root, name), "wb") as f:
            f.write(b"%d" % i)
    os.mkdir(os.path.join(root, b"sub\xff\ndir"))
    with open(os.path.join(root, b"sub\xff\ndir", b"\n"), "wb") as f:
        f.write(b"x")


def files(root):
    rng = random.Random(1)
    for size in [0, 1, 100, 4095, 4096, 16383, 16384, 16385, 100_000, 1 << 20, (1 << 20) + 1, 3_000_000]:
        with open(os.path.join(root, "size%d" % size), "wb") as f:
            f.write(rng.randbytes(size))
    with open(os.path.join(root, "zeros"), "wb") as f:
        f.write(bytes(300_000))
    with open(os.path.join(root, "sparse"), "wb") as f:
        f.truncate(100 << 30)
        for at in [0, 5 << 30, (50 << 30) + 12345, (100 << 30) - 10]:
            f.seek(at)
            f.write(b"island %d" % at if at < 99 << 30 else b"0123456789")
    with open(os.path.join(root, "allhole"), "wb") as f:
        f.truncate(10 << 30)
    with open(os.path.join(root, "unreadable"), "wb") as f:
        f.write(b"secret")
    os.chmod(os.path.join(root, "unreadable"), 0)
    os.mkdir(os.path.join(root, "closed"))
    with open(os.path.join(root, "closed", "inside"), "wb") as f:
        f.write(b"inside")
    os.chmod(os.path.join(root, "closed"), 0)


def links(root):
    os.symlink("nowhere/at/all", os.path.join(root, "dangling"))
    os.symlink("loop", os.path.join(root, "loop"))
    os.symlink("/etc", os.path.join(root, "outside"))
    os.symlink("..", os.path.join(root, "up"))
    os.symlink(b"\xff\n", os.path.join(root, "odd").encode())
    os.symlink("x" * 4000, os.path.join(root, "long"))
    os.mkdir(os.path.join(root, "target"))
    os.symlink("target", os.path.join(root, "todir"))
    with open(os.path.join(root, "h1"), "wb") as f:
        f.write(b"linked")
    os.link(os.path.join(root, "h1"), os.path.join(root, "h2"))
    os.link(os.path.join(root, "h1"), os.path.join(root, "target", "h3"))
    os.link(os.path.join(root, "dangling"), os.path.join(root, "dangling2"), follow_symlinks=False)


def nodes(root, as_root):
    os.mkfifo(os.path.join(root, "fifo"), 0o640)
    os.link(os.path.join(root, "fifo"), os.path.join(root, "fifo2"))
    here = os.getcwd()
    os.chdir(root)
    s = socket.socket(socket.AF_UNIX)
    s.bind("socket")
    s.close()
    os.chdir(here)
    if as_root:
        os.mknod(os.path.join(root, "null"), 0o020666, os.makedev(1, 3))
        os.mknod(os.path.join(root, "block"), 0o060600, os.makedev(259, 70000))


def attributes(root, as_root):
    def make(name, text=b"attributes"):
        path = os.path.join(root, name)
        with open(path, "wb") as f:
            f.write(text)
        return path

    for mode in [0o4755, 0o2755, 0o6711, 0o1777, 0o7777, 0o400, 0o002]:
        os.chmod(make("mode%o" % mode), mode)
    d = os.path.join(root, "setgid.d")
    os.mkdir(d)
    os.chmod(d, 0o3775)
    x = make("xattrs")
    os.setxattr(x, "user.one", b"1")
    os.setxattr(x, "user.empty", b"")
    os.setxattr(x, "user.binary", bytes(range(256)))
    os.setxattr(x, "user.big", b"v" * 2000)
    os.setxattr(d, "user.dir", b"on a directory")
    os.setxattr(root, "user.root", b"on the root")
    subprocess.run(["setfacl", "-m", "u:12345:rwx,g:54321:r--", make("acl")], check=True)
    subprocess.run(["setfacl", "-m", "d:u:12345:rx,d:o::---,u:777:rwx", d], check=True)
    make("setgid.d/inherits")
    if as_root:
        os.setxattr(x, "trusted.t", b"trusted")
        os.lchown(make("owned"), 12345, 54321)
        os.symlink("owned", os.path.join(root, "ownedlink"))
        os.lchown(os.path.join(root, "ownedlink"), 99, 98)
        os.chown(d, 1, 2)
        os.chmod(d, 0o3775)
        c = make("capable")
        os.setxattr(c, "security.capability", bytes.fromhex("0100000200040000000000000000000000000000"))
        os.chown(make("suid-owned"), 5, 5)
        os.chmod(os.path.join(root, "suid-owned"), 0o6755)
    for i, ns in enumerate([0, 1, 999_999_999, 1_500_000_000_123_456_789, -5_000_000_001, 4_102_444_800_000_000_007]):
        os.utime(make("time%d" % i), ns=(0, ns))
    os.mkdir(os.path.join(root, "timed"))
    make("timed/file")
    os.utime(os.path.join(root, "timed"), ns=(0, 1_234_567_890_987_654_321))
    os.symlink("timed", os.path.join(root, "timedlink"))
    os.utime(os.path.join(root, "timedlink"), ns=(0, 1_111_111_111_222_222_222), follow_symlinks=False)


def main():
    root, as_root = sys.argv[1], "--root" in sys.argv
    for name, make in [
        ("deep", deep),
        ("names", lambda d: names(os.fsencode(d))),
        ("files", files),
        ("links", links),
        ("nodes", lambda d: nodes(d, as_root)),
        ("attributes", lambda d: attributes(d, as_root)),
    ]:
        path = os.path.join(root, name)
        os.mkdir(path)
        make(path)
    os.mkdir(os.path.join(root, "empty"))
    os.setxattr(root, "user.root", b"on the root")
    os.chmod(root, 0o751)
    os.utime(root, ns=(0, 1_600_000_000_000_000_003))


main()
