#!/bin/sh
# Fuzzes the decoders, one target after another, each for some time; fails at the first finding.
#
#   scripts/fuzz.sh [SECONDS [TARGET...]]     60 s each of all targets unless told
#
# Works on stable: the coverage that libFuzzer wants comes from flags of the compiler. What was found stays in
# tests/fuzz/corpus, so that the next run goes on from there; the input of a finding is in tests/fuzz/findings.
# Needs g++. FUZZ_JOBS runs so many targets at once.
set -eu
cd "$(dirname "$0")/.."
seconds=${1:-60}
[ $# -eq 0 ] || shift
case $seconds in
'' | *[!0-9]*) echo "fuzz.sh: '$seconds' is no number of seconds" >&2 && exit 2 ;;
esac
if [ $# -eq 0 ]; then
	# shellcheck disable=SC2046 # names without spaces
	set -- $(sed -n 's/^    ("\([a-z]*\)", [a-z_]*),$/\1/p' tests/fuzz/src/targets.rs)
fi

host=$(rustc -vV | sed -n 's/^host: //p')
target=${FUZZ_TARGET_DIR:-${CARGO_TARGET_DIR:-target}/fuzz}
RUSTFLAGS="-Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
-Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table \
-Cllvm-args=-sanitizer-coverage-trace-compares" \
	CARGO_TARGET_DIR="$target" cargo build -q --manifest-path tests/fuzz/Cargo.toml --target "$host"
program=$target/$host/debug/fuzz

seeds=tests/fuzz/seeds
corpus=tests/fuzz/corpus
findings=tests/fuzz/findings
mkdir -p "$findings"
run() { # run TARGET
	mkdir -p "$corpus/$1"
	log=$findings/$1.log
	if TOWLINE_FUZZ=$1 "$program" "$corpus/$1" "$seeds/$1" -max_total_time="$seconds" -timeout=20 -rss_limit_mb=2048 \
		-max_len=65536 -print_final_stats=1 -artifact_prefix="$findings/$1-" >"$log" 2>&1; then
		echo "fuzz.sh: $1: $(sed -n 's/^stat::number_of_executed_units: */runs /p; s/^stat::average_exec_per_sec: */a second /p' "$log" | tr '\n' ' ')nothing found"
		rm -f "$log"
	else
		tail -n 40 "$log" >&2
		echo "fuzz.sh: $1: FOUND SOMETHING; the input is in $findings, see above" >&2
		return 1
	fi
}

status=0
running=0
for name in "$@"; do
	[ -d "$seeds/$name" ] || { echo "fuzz.sh: there is no target '$name'" >&2 && exit 2; }
	run "$name" &
	running=$((running + 1))
	if [ "$running" -ge "${FUZZ_JOBS:-1}" ]; then
		wait || :
		running=0
	fi
done
wait
[ -z "$(ls -A "$findings")" ] || status=1
exit $status
