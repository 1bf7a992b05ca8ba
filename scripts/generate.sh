#!/bin/sh
# Writes man/ and scripts/completions/ anew from the program's own definitions.
#
#   scripts/generate.sh
#
# A test compares what is committed with a fresh generation.
set -eu
cd "$(dirname "$0")/.."
cargo build -q --features failpoints --bin towline
program=${CARGO_TARGET_DIR:-target}/debug/towline
"$program" generate man man
"$program" generate completions scripts/completions
