#!/bin/sh
# Builds the release program and prints the table of figures, peers beside it: tests/bench/bench.sh [NAME...]
#
# NAMEs choose rows (lag fill-pg fill-small catchup page pages scan idle bulk); BENCH_SCALE=0.1 makes all sizes
# a tenth; BENCH_DIR is where the data goes (a real disk; /var/tmp). Needs the packages that scripts/test.sh installs.
set -eu
cd "$(dirname "$0")/../.."
cargo build --release --quiet
python=/usr/bin/python3
[ -x $python ] || python=python3
exec $python tests/bench/bench.py "$@"
