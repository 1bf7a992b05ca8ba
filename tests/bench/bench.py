#!/usr/bin/python3
"""The table of figures: towline and its peers on the same data, in turn. See bench.sh."""
import argparse
import signal
import subprocess
import sys
import time
import traceback

import bed
import figures

HEAD = ["figure", "measured", "must", "aim", "verdict", "peers", "peer / towline", "where the time goes", "load"]


def main():
    parser = argparse.ArgumentParser(description="Measures the figures and prints one table.")
    parser.add_argument("--quick", action="store_true", help="a twentieth of the data, one round: shows that it works")
    parser.add_argument("--rounds", type=int, default=0, help="how often each is measured; the median counts")
    parser.add_argument("names", nargs="*", metavar="NAME", help="of " + " ".join(figures.ALL))
    args = parser.parse_args()
    unknown = [n for n in args.names if n not in figures.ALL]
    if unknown:
        parser.error("no figure is called %s; there are %s" % (unknown[0], " ".join(figures.ALL)))
    figures.QUICK, figures.ROUNDS = args.quick, args.rounds
    rows, failed = [], 0
    for name in args.names or figures.ALL:
        began = time.monotonic()
        print("measuring %s, load %.1f" % (name, bed.load()), file=sys.stderr, flush=True)
        try:
            new = [row.cells() for row in figures.ALL[name]()]
        except (bed.Failed, OSError, ValueError, subprocess.CalledProcessError) as e:
            traceback.print_exc()
            new, failed = [[name, "not measured: %s" % e, *[""] * 7]], 1
        for cells in new:
            print("  %s: %s [%s] %s" % (cells[0], cells[1], cells[4], cells[6]), file=sys.stderr, flush=True)
        print("  in %.0f s" % (time.monotonic() - began), file=sys.stderr, flush=True)
        rows += new
        bed.clear()
    print("| %s |\n|%s" % (" | ".join(HEAD), " --- |" * len(HEAD)))
    for cells in rows:
        print("| %s |" % " | ".join(cells))
    return failed


def ended(number, _):
    sys.exit(128 + number)


for ending in [signal.SIGTERM, signal.SIGHUP, signal.SIGINT]:
    signal.signal(ending, ended)
try:
    status = main()
finally:
    bed.close()
    bed.remove(bed.work)
sys.exit(status)
