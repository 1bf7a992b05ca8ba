#!/bin/sh
# Builds the release program and prints the table of figures, peers beside it:
#
#   tests/bench/bench.sh [--quick] [--rounds N] [NAME...]
#
# NAMEs choose figures (lag wait fill-pg fill-small catchup page pages scan idle bulk tls fanout resync backup-pg
# backup-small incremental restore verify promote switchover rewind); --quick makes all sizes a
# twentieth; --rounds says how often each is measured (up to 3). BENCH_DIR is where the data goes: 12 GB (resync, rewind: 45 GB) on a
# real disk (/var/tmp); TOWLINE is a program to measure instead of a new build. Needs root (PostgreSQL runs as its
# own user, perf sees all), what scripts/test.sh installs, and for "where the time goes" perf (linux-perf).
set -eu
cd "$(dirname "$0")/../.."
[ -n "${TOWLINE:-}" ] || cargo build --release --quiet
python=/usr/bin/python3
[ -x $python ] || python=python3
exec $python -B tests/bench/bench.py "$@"
