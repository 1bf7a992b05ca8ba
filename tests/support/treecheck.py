#!/usr/bin/python3
"""Compares two directory trees, sharing no code with the program under test.

    treecheck.py [--quick] [--sparse] [--max N] A B     0: equal, 1: different (says where), 2: failed
    treecheck.py --digest A                             one SHA-256 over everything that is compared

Compared for every object, the roots included: type, mode, uid, gid, mtime in nanoseconds, size and
content of regular files (SHA-256, holes skipped), symlink target, extended attributes with POSIX ACLs,
device number, and which names share an inode. `.towline-stage` in a root is left out.
--quick leaves the content out. --sparse also asks that a sparse file stayed sparse.
"""
import argparse
import hashlib
import os
import stat
import sys

STAGE = b".towline-stage"
GRID = 1 << 20
ZERO = bytes(GRID)
DIR_FLAGS = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


def xattrs(path):
    """Replicated attributes: a security module's labels belong to the host."""
    out = {}
    for name in os.listxattr(path, follow_symlinks=False):
        if name.startswith("security.") and name != "security.capability":
            continue
        try:
            out[name] = os.getxattr(path, name, follow_symlinks=False)
        except OSError as e:
            if e.errno != 61:
                raise
    return out


def content(fd, size):
    """SHA-256 over (offset, bytes) of every piece of the 1 MiB grid that is not all zero."""
    h = hashlib.sha256()
    done = 0
    while done < size:
        try:
            start = os.lseek(fd, done, os.SEEK_DATA)
        except OSError:
            break
        end = os.lseek(fd, start, os.SEEK_HOLE)
        at = max(done, start - start % GRID)
        while at < end:
            piece = os.pread(fd, GRID, at)
            if not piece:
                return "short"
            if piece != ZERO[: len(piece)]:
                h.update(b"%d:" % at)
                h.update(piece.rstrip(b"\0"))
            at += GRID
        done = at
    return h.hexdigest()


class Tree:
    """Everything about a tree but the contents, which are read on demand."""

    def __init__(self, root):
        self.root = os.fsencode(root)
        self.fd = os.open(self.root, DIR_FLAGS)
        self.entries = {}
        self.groups = {}
        st = os.fstat(self.fd)
        self.entries[b"."] = (st, b"", xattrs("/proc/self/fd/%d/." % self.fd))
        self.walk(self.fd, b"")
        self.first = {}
        for names in self.groups.values():
            # The other names of an inode may lie outside of the tree.
            for name in names if len(names) > 1 else []:
                self.first[name] = tuple(sorted(names))

    def walk(self, fd, prefix):
        with os.scandir(fd) as it:
            names = [os.fsencode(e.name) for e in it]
        for name in names:
            if not prefix and name == STAGE:
                continue
            rel = prefix + name
            try:
                st = os.stat(name, dir_fd=fd, follow_symlinks=False)
                target = os.readlink(name, dir_fd=fd) if stat.S_ISLNK(st.st_mode) else b""
                attrs = xattrs(b"/proc/self/fd/%d/%s" % (fd, name))
                self.entries[rel] = (st, target, attrs)
                if stat.S_ISDIR(st.st_mode):
                    sub = os.open(name, DIR_FLAGS, dir_fd=fd)
                    try:
                        self.walk(sub, rel + b"/")
                    finally:
                        os.close(sub)
                elif st.st_nlink > 1:
                    self.groups.setdefault((st.st_dev, st.st_ino), []).append(rel)
            except FileNotFoundError:
                # It moves under us: the caller looks again until the tree is quiet.
                self.entries[rel] = None

    def open_file(self, rel):
        """Component by component: a path may be longer than PATH_MAX."""
        parts = rel.split(b"/")
        fd = os.dup(self.fd)
        for i, part in enumerate(parts):
            flags = DIR_FLAGS if i + 1 < len(parts) else os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK
            try:
                nxt = os.open(part, flags, dir_fd=fd)
            finally:
                os.close(fd)
            fd = nxt
        return fd

    def digest_of(self, rel):
        fd = self.open_file(rel)
        try:
            return content(fd, os.fstat(fd).st_size)
        finally:
            os.close(fd)


def described(st, target, attrs):
    """What must be equal, by name."""
    kind = stat.S_IFMT(st.st_mode)
    out = {
        "type": kind,
        "mode": stat.S_IMODE(st.st_mode),
        "uid": st.st_uid,
        "gid": st.st_gid,
        "mtime": st.st_mtime_ns,
        "target": target,
        "xattrs": attrs,
    }
    if kind == stat.S_IFREG:
        out["size"] = st.st_size
    if kind in (stat.S_IFCHR, stat.S_IFBLK):
        out["rdev"] = st.st_rdev
    return out


def compare_one(a, b, rel, args, say):
    ea, eb = a.entries[rel], b.entries[rel]
    if ea is None or eb is None:
        say(rel, "moved during the comparison")
        return
    da, db = described(*ea), described(*eb)
    bad = False
    for key in da.keys() | db.keys():
        if da.get(key) != db.get(key):
            say(rel, "%s: %r against %r" % (key, da.get(key), db.get(key)))
            bad = True
    if a.first.get(rel) != b.first.get(rel):
        say(rel, "hard links: %r against %r" % (a.first.get(rel), b.first.get(rel)))
    if bad or da["type"] != stat.S_IFREG:
        return
    if args.sparse:
        have, want = eb[0].st_blocks * 512, ea[0].st_blocks * 512
        if want < ea[0].st_size // 2 and have > 2 * want + (1 << 20):
            say(rel, "not sparse: %d bytes allocated against %d" % (want, have))
    if args.quick or da["size"] == 0:
        return
    try:
        if a.digest_of(rel) != b.digest_of(rel):
            say(rel, "content")
    except (FileNotFoundError, NotADirectoryError):
        say(rel, "moved during the comparison")


def compare(args):
    a, b = Tree(args.a), Tree(args.b)
    count = 0

    def say(rel, what):
        nonlocal count
        count += 1
        if count <= args.max:
            print("%r: %s" % (rel, what))

    for rel in sorted(a.entries.keys() | b.entries.keys()):
        if rel not in b.entries:
            say(rel, "only in %s" % args.a)
        elif rel not in a.entries:
            say(rel, "only in %s" % args.b)
        else:
            compare_one(a, b, rel, args, say)
    if count:
        print("%d differences, %d against %d entries" % (count, len(a.entries), len(b.entries)))
        return 1
    print("equal: %d entries" % len(a.entries))
    return 0


def digest(args):
    tree = Tree(args.a)
    h = hashlib.sha256()
    for rel in sorted(tree.entries):
        entry = tree.entries[rel]
        if entry is None:
            print("the tree moves", file=sys.stderr)
            return 2
        d = described(*entry)
        h.update(repr((rel, sorted(d.items(), key=lambda kv: kv[0]), tree.first.get(rel))).encode())
        if d["type"] == stat.S_IFREG and d["size"]:
            h.update(tree.digest_of(rel).encode())
    print(h.hexdigest())
    return 0


def main():
    p = argparse.ArgumentParser()
    p.add_argument("--quick", action="store_true")
    p.add_argument("--sparse", action="store_true")
    p.add_argument("--digest", action="store_true")
    p.add_argument("--max", type=int, default=20)
    p.add_argument("a")
    p.add_argument("b", nargs="?")
    args = p.parse_args()
    sys.setrecursionlimit(100_000)
    try:
        return digest(args) if args.digest else compare(args)
    except OSError as e:
        print("treecheck: %s" % e, file=sys.stderr)
        return 2


sys.exit(main())
