"""What ten followers cost a leader, beside the same bytes over as many bare sockets."""
import os
import socket
import time
from multiprocessing import Process

import bed
from bed import MIB, Node, applied, hashed, lsn, median, ready

# Bytes handed to a socket at once, as the leader does.
PIECE = 256 << 10


def shipping(count, size):
    """Processor seconds of a leader while it takes in MiBs of noise and ships them to so many followers, and the bytes
    of log."""
    home = os.path.join(bed.work, "fanout%d" % count)
    leader = Node(os.path.join(home, "leader"), scrub_rate="16G")
    leader.until("hashed", hashed)
    followers = [Node(os.path.join(home, "f%d" % n), leader) for n in range(count)]
    for follower in followers:
        follower.until("filled", lambda s: ready(s) and applied(s))
    os.sync()
    begin, cpu = leader.end(), leader.cpu()
    for n in range(max(1, size // 8)):
        with open("%s/noise%d" % (leader.data, n), "wb") as f:
            f.write(os.urandom(min(size, 8) * MIB))
    leader.until("captured", lambda s: lsn(s["log"]["exact"]) - begin >= size * MIB, pause=0.2)
    end = lsn(leader.status()["log"]["exact"])
    for follower in followers:
        follower.until("flushed", lambda s: lsn(s["log"]["end"]) >= end, pause=0.2)
    took = leader.cpu() - cpu
    for node in [leader, *followers]:
        node.stop()
    bed.clear()
    return took, end - begin


def drain(port):
    """Reads all that comes from there."""
    buffer = bytearray(PIECE)
    with socket.create_connection(("127.0.0.1", port)) as s:
        while s.recv_into(buffer):
            pass


def bare(count, size):
    """Processor seconds of a process that reads so many MiB of a file in memory once and sends them over so many
    sockets."""
    path = os.path.join(bed.work, "bare")
    with open(path, "wb") as f:
        for _ in range(size):
            f.write(os.urandom(MIB))
    with socket.create_server(("127.0.0.1", 0)) as server:
        readers = [Process(target=drain, args=server.getsockname()[1:], daemon=True) for _ in range(count)]
        for reader in readers:
            reader.start()
            bed.closers.append(reader.kill)
        sockets = [server.accept()[0] for _ in range(count)]
    buffer = memoryview(bytearray(PIECE))
    start = time.process_time()
    with open(path, "rb", buffering=0) as f:
        while n := f.readinto(buffer):
            for s in sockets:
                s.sendall(buffer[:n])
    took = time.process_time() - start
    for s in sockets:
        s.close()
    for reader in readers:
        reader.join()
    bed.clear()
    return took


def measure(scaled, rounds, Row):
    size = scaled(256)
    cost = {count: [] for count in [0, 1, 10]}
    floor, length = [], 0
    # Taken in turns: what else the machine does falls on all of them.
    for _ in range(rounds):
        for count, costs in cost.items():
            took, length = shipping(count, size)
            costs.append(took / (length / (1 << 30)))
        floor.append(bare(10, size) / (size / 1024) / 10)
    none, one, ten, each = (median(x) for x in [*cost.values(), floor])
    per_ten = (ten - none) / 10
    text = "%.2f s a GiB for each of ten, %.2f s for one; %.2f s for capture and compression, once" % (
        per_ten, one - none, none)
    return [Row("leader's processor time, 1 and 10 followers", text, "3x of bare copying", "2x",
                [(per_ten / each, 3, 2)], "ten bare sockets %.2f s each" % each, "%.2fx" % (per_ten / each))]
