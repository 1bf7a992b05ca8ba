"""What encryption costs: the same first copy and the same catch-up, plain and over TLS, in turn."""
import json
import os
import random
import subprocess
import time

import bed
from bed import MIB, TOWLINE, Node, applied, hashed, lsn, median, ready, run, same

MODES = ["off", "on"]


def key(state):
    out = run(TOWLINE, "id", "--json", "--state", state, stdout=subprocess.PIPE, text=True).stdout
    return json.loads(out)["fingerprint"]


def acquainted(leader, home):
    """The two commands."""
    state, name = os.path.join(home, "state"), os.path.basename(home)
    quiet = {"stdout": subprocess.DEVNULL}
    run(TOWLINE, "trust", name, key(state), "--state", leader.state, "--role", "follower", **quiet)
    run(TOWLINE, "trust", "alpha", key(leader.state), "--state", state, "--role", "leader", **quiet)


def switch(node, mode):
    """Starts a node anew with the key `tls`."""
    if node.process.poll() is None:
        node.stop()
    with open(node.file) as f:
        lines = [line for line in f if not line.startswith("tls = ")]
    with open(node.file, "w") as f:
        f.writelines(["tls = %s\n" % json.dumps(mode), *lines])
    node.start()


def lead(leader, mode):
    switch(leader, mode)
    leader.until("hashed", hashed, pause=0.05)


def write(leader, first, count):
    """Files of 8 MiB, of which half compresses, as a data directory does."""
    rng, begin = random.Random(first), leader.end()
    for i in range(first, first + count):
        half = rng.randbytes(4 * MIB)
        with open("%s/f%d" % (leader.data, i), "wb") as f:
            f.write(half)
            f.write((half[:2048] + bytes(2048)) * (MIB // 1024))
    enough = begin + count * 8 * MIB
    leader.until("captured", lambda s: lsn(s["log"]["exact"]) >= enough and ready(s))
    time.sleep(2)
    return begin, lsn(leader.status()["log"]["exact"])


def figure(name, size, rates, row):
    """`rates`: MB/s by mode. Each pair was measured one after the other: the median of their shares counts."""
    share = 100 * median([tls / plain for plain, tls in zip(rates["off"], rates["on"])])
    text = "%.0f %% of plain: %s MB/s over TLS, %s plain" % (
        share, *(", ".join("%.0f" % r for r in rates[mode]) for mode in reversed(MODES)))
    return row("%s over TLS, %d MiB" % (name, size >> 20), text, "60 %", "90 %", [(-share, -60, -90)])


def measure(scaled, rounds, row):
    """Rows of the table."""
    home = os.path.join(bed.work, "tls")
    leader = Node(os.path.join(home, "leader"), scrub_rate="16G", tls="off", name="alpha")
    leader.until("hashed", hashed)
    count = scaled(64)
    write(leader, 0, count)
    size, rates = count * 8 * MIB, {mode: [] for mode in MODES}
    for n in range(rounds):
        for mode in MODES if n % 2 == 0 else MODES[::-1]:
            place = os.path.join(home, "copy-%s-%d" % (mode, n))
            acquainted(leader, place)
            lead(leader, mode)
            os.sync()
            start = time.monotonic()
            follower = Node(place, leader, tls=mode)
            follower.until("filled", lambda s: ready(s) and applied(s), pause=0.005)
            os.sync()
            rates[mode].append(size / (time.monotonic() - start) / 1e6)
            if n == 0:
                same(leader.data, follower.data)
            follower.kill()
            bed.remove(place)
    rows = [figure("fill", size, rates, row)]
    lead(leader, "off")
    followers = []
    for n in range(2 * rounds):
        place = os.path.join(home, "late-%d" % n)
        acquainted(leader, place)
        follower = Node(place, leader, tls="off")
        follower.until("filled", lambda s: ready(s) and applied(s))
        follower.stop()
        followers.append(follower)
    begin, end = write(leader, count, count)
    rates = {mode: [] for mode in MODES}
    for n in range(rounds):
        for mode in MODES if n % 2 == 0 else MODES[::-1]:
            follower = followers.pop()
            lead(leader, mode)
            os.sync()
            start = time.monotonic()
            switch(follower, mode)
            follower.until("caught up", lambda s: applied(s) >= end, pause=0.005)
            os.sync()
            rates[mode].append((end - begin) / (time.monotonic() - start) / 1e6)
            if mode == "on":
                assert follower.status()["upstream"]["tls"], "it was not encrypted"
            follower.stop()
    return [*rows, figure("catch-up", end - begin, rates, row)]
