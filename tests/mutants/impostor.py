#!/usr/bin/python3
# Breaks: order, apps: the whole daemon is a copier that runs again and again; its copies are no cuts
# Test: e2e order::a_paused_follower_never_shows_the_later_write_without_the_earlier
# Test: e2e apps::sqlite_in_wal_mode
# Test: e2e apps::sqlite_in_delete_mode 2
# Test: e2e apps::git_with_commits_and_gc
# Test: e2e apps::redis_with_an_append_only_file
# Test: e2e apps::postgresql_under_pgbench_with_the_freeze
"""Answers as towline does, as far as the tests ask, and keeps a follower by rsync."""
import glob
import json
import os
import signal
import subprocess
import sys
import time

STATE = "impostor.json"


def option(name):
    return sys.argv[sys.argv.index(name) + 1] if name in sys.argv else None


def put(path, value):
    with open(path + ".new", "w") as f:
        json.dump(value, f)
    os.rename(path + ".new", path)


def status(paused, copies):
    rest = {"lsn": "0/10", "cut": "exact", "paused": paused}
    log = {"end": "0/10", "exact": "0/10", "commit": "0/10"}
    cuts = {"cuts_exact": copies, "cuts_file": 0}
    return {"state": "running", "error": None, "log": log, "apply": rest, "capture": cuts}


def run(state, data):
    os.makedirs(state, exist_ok=True)
    path = os.path.join(state, STATE)
    listen = option("--listen").rsplit(":", 1)[1]
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
    if sys.argv[1] == "leader":
        put(path, {"listen": listen, "data": data, "status": status(False, 1)})
        signal.pause()
    bed = os.path.dirname(os.path.dirname(state))
    port = option("--leader").rsplit(":", 1)[1]
    nodes = [json.load(open(f)) for f in glob.glob("%s/*/state/%s" % (bed, STATE))]
    source = next(n["data"] for n in nodes if n["listen"] == port)
    copies = 0
    while True:
        paused = os.path.exists(os.path.join(state, "pause"))
        if not paused:
            # Stamps count to the nanosecond.
            words = ["rsync", "-aHAXS", "--modify-window=-1", "--delete", source + "/", data]
            subprocess.run(words, stderr=subprocess.DEVNULL)
            copies += 1
        put(path, {"listen": listen, "data": data, "status": status(paused, copies)})
        time.sleep(0.05)


def main():
    state = option("--state")
    path, pause = os.path.join(state, STATE), os.path.join(state, "pause")
    if sys.argv[1] in ("leader", "follower"):
        run(state, option("--data"))
    if sys.argv[1] == "pause":
        open(pause, "w").close()
        while not json.load(open(path))["status"]["apply"]["paused"]:
            time.sleep(0.01)
    elif sys.argv[1] == "resume" and os.path.exists(pause):
        os.unlink(pause)
    answer = json.load(open(path))["status"]
    print(json.dumps(answer["apply"] if sys.argv[1] == "pause" else answer))


main()
