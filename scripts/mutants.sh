#!/bin/sh
# Breaks one mechanism at a time on purpose and demands that the test which guards it fails.
#
#   scripts/mutants.sh [NAME...]       those of tests/mutants/NAME.patch; all unless told
#
# The first lines of a patch say what it breaks and which tests must fail, every one of them:
#
#   # Breaks: WHAT
#   # Test: SUITE NAME [TRIES]         e2e, crash or lib; the full name of one test; runs it may take
#
# A mutant may also be a program that stands in for towline: tests/mutants/NAME.py, with the same lines.
#
# Everything happens in a worktree of the last commit below target/mutants, whose builds are kept between
# mutants and runs. Patches come from the working tree. A test counts as failing only when the unbroken
# program passes it (MUTANTS_TRUST=1 takes that as given).
set -eu
cd "$(dirname "$0")/.."
home=$PWD
work=${MUTANTS_DIR:-$home/target/mutants}
tree=$work/tree
export CARGO_TARGET_DIR="$work/target" CARGO_INCREMENTAL=1 RUST_BACKTRACE=0
mkdir -p "$work/log"
# Tests that fail keep their directories: these are of no use to anybody.
TOWLINE_TEST_DIR=$(mktemp -d "${TOWLINE_TEST_DIR:-/var/tmp}/mutants.XXXXXX")
export TOWLINE_TEST_DIR
chmod 755 "$TOWLINE_TEST_DIR"
trap 'rm -rf "$TOWLINE_TEST_DIR"' EXIT
trap 'exit 130' INT TERM

say() { printf '%s\n' "$*"; }
file_of() { # file_of NAME
	if [ -e "$home/tests/mutants/$1.py" ]; then say "$home/tests/mutants/$1.py"; else say "$home/tests/mutants/$1.patch"; fi
}
lines() { # lines KEY PATCH: what the first lines of a patch say
	sed -n "/^diff /q; s/^# $1: //p" "$2"
}
build() { # build OUT: the program and the unit tests as the worktree has them now
	(cd "$tree" && cargo build -q --features failpoints --bin towline) >"$1" 2>&1
}
suite() { # suite NAME: the path of a test program
	cargo test -q --manifest-path "$tree/Cargo.toml" --features failpoints "$@" --no-run --message-format=json |
		sed -n 's/.*"profile":{[^}]*"test":true}.*"executable":"\([^"]*\)".*/\1/p' | tail -n 1
}
passes() { # passes PROGRAM TEST OUT: 0 passed, 1 failed, 2 neither
	status=0
	(cd "$tree" && TOWLINE_BIN="$bin" timeout -k 5 600 "$1" --exact "$2" --nocapture) >"$3" 2>&1 || status=$?
	rm -rf "${TOWLINE_TEST_DIR:?}"/*
	if [ "$status" = 0 ] && grep -q '^test result: ok. 1 passed' "$3"; then return 0; fi
	if grep -q '^test result: FAILED. 0 passed; 1 failed' "$3"; then return 1; fi
	return 2
}
program() { # program SUITE: which test program a mutant's test is run from
	case $1 in
	lib) suite --lib ;;
	e2e) say "$work/e2e" ;;
	crash) say "$work/crash" ;;
	*) say "no suite is called $1" >&2 && return 1 ;;
	esac
}

head=$(git rev-parse HEAD)
if [ -e "$tree/.git" ]; then
	git -C "$tree" checkout -q -f --detach "$head"
else
	git worktree prune
	git worktree add -q --detach "$tree" "$head"
fi
git -C "$tree" clean -q -fd
say "building $head"
build "$work/log/build" || { cat "$work/log/build"; exit 1; }
cp "$CARGO_TARGET_DIR/debug/towline" "$work/unbroken"
# The test programs are built once; mutants change the program that they start.
for name in e2e crash; do
	path=$(suite --test $name)
	[ -x "$path" ] || { say "no test program $name"; exit 1; }
	cp "$path" "$work/$name"
done

if [ $# = 0 ]; then
	for patch in tests/mutants/*.patch tests/mutants/*.py; do
		name=$(basename "$patch" .patch)
		set -- "$@" "${name%.py}"
	done
fi

killed=0
bad=
unbroken_passes() { # unbroken_passes SUITE TEST: asked once a run for each test
	[ -z "${MUTANTS_TRUST:-}" ] || return 0
	done=$work/log/unbroken.$2
	if [ ! -e "$done.ok" ] || [ "$(cat "$done.ok")" != "$head" ]; then
		bin=$work/unbroken
		passes "$(program "$1")" "$2" "$done" || return 1
		say "$head" >"$done.ok"
	fi
}
mutant() { # mutant NAME
	patch=$(file_of "$1")
	log=$work/log/$1
	[ -e "$patch" ] || { verdict="there is no such patch"; return 1; }
	lines Test "$patch" >"$log.tests"
	[ -s "$log.tests" ] || { verdict="the patch names no test"; return 1; }
	git -C "$tree" checkout -q -f "$head"
	while read -r suite test _; do
		unbroken_passes "$suite" "$test" || { verdict="$test does not pass unbroken"; return 1; }
	done <"$log.tests"
	case $patch in
	*.py) bin=$patch ;;
	*)
		git -C "$tree" apply -C1 "$patch" 2>"$log.apply" || { verdict="THE PATCH NO LONGER APPLIES"; return 1; }
		# Unit tests do without the program.
		if grep -qv '^lib ' "$log.tests"; then
			build "$log.build" || { verdict="THE MUTANT DOES NOT COMPILE"; return 1; }
		fi
		bin=$CARGO_TARGET_DIR/debug/towline
		;;
	esac
	verdict=
	while read -r suite test tries; do
		path=$(program "$suite" 2>"$log.build")
		[ -x "$path" ] || { verdict="THE MUTANT DOES NOT COMPILE"; return 1; }
		n=0
		while :; do
			n=$((n + 1))
			result=0
			passes "$path" "$test" "$log.${test##*::}" </dev/null || result=$?
			if [ "$result" != 0 ] || [ $n -ge "${tries:-1}" ]; then break; fi
		done
		case $result in
		0) verdict="SURVIVED: $test passed ($n runs)" && return 1 ;;
		1) verdict="$verdict $test failed (run $n): $(grep -m 1 -A 1 'panicked at' "$log.${test##*::}" | tail -n 1 | cut -c 1-150);" ;;
		*) verdict="$test ended neither passed nor failed, see $log.${test##*::}" && return 1 ;;
		esac
	done <"$log.tests"
}

for name in "$@"; do
	if mutant "$name"; then
		killed=$((killed + 1))
		say "killed    $name ($(lines Breaks "$(file_of "$name")")):$verdict"
	else
		bad="$bad $name"
		say "NOT KILLED $name ($(lines Breaks "$(file_of "$name")" 2>/dev/null)): $verdict"
	fi
done
git -C "$tree" checkout -q -f "$head"
say "$killed of $# mutants killed${bad:+; NOT KILLED:$bad}"
[ -z "$bad" ]
