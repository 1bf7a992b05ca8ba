#!/bin/sh
# Random workloads with random kills, stops, cut, stalled and lying networks and pauses, on a leader, a
# follower and a follower of that; after each round the three trees are compared.
#
#   scripts/soak.sh [MINUTES]          30 unless told, of each kind
#   scripts/soak.sh MINUTES all        then also the long variants of every other suite
set -eu
cd "$(dirname "$0")/.."
minutes=${1:-30}
export TOWLINE_SOAK_MINUTES="$minutes" RUST_BACKTRACE=1
cargo test --release --features failpoints --test crash -- --nocapture --exact rounds::soak_rounds
# Then as long again: leader and one follower killed under load, and what was confirmed looked for.
cargo test --release --features failpoints --test crash -- --nocapture --exact acks::soak_acks
# Then as long again: leaders are lost and come back, and every change is accounted for; 200 rounds are about half an hour.
cargo test --release --features failpoints --test crash -- --nocapture --exact failover::soak_failover
if [ "${2:-}" = all ]; then
	export TOWLINE_SOAK=1
	unset TOWLINE_SOAK_MINUTES
	cargo test --release --features failpoints --no-fail-fast --test crash --test e2e -- --nocapture --test-threads 2
fi
