#!/bin/sh
# Formatting, lints, and every test, on a fresh Debian 12: what is missing is installed when run as root.
#
#   scripts/test.sh [FILTER...]        FILTER goes to the integration tests
#
# TOWLINE_SOAK=1 runs the long variants. Every process that is started here is ended by the tests themselves.
set -eu
cd "$(dirname "$0")/.."

need() { # need PROGRAM PACKAGE: remembers what is missing
	command -v "$1" >/dev/null 2>&1 || missing="$missing $2"
}
header() { # header FILE PACKAGE
	[ -e "/usr/include/$1" ] || missing="$missing $2"
}

missing=
need gcc gcc
need g++ g++
need python3 python3
need rsync rsync
need lsyncd lsyncd
need zstd zstd
need git git
need setfacl acl
need getfattr attr
need promtool prometheus
need haproxy haproxy
need redis-server redis-server
need redis-check-aof redis-tools
need sqlite3 sqlite3
need strace strace
need mandoc mandoc
need systemd-analyze systemd
need shellcheck shellcheck
need ps procps
need runuser util-linux
need mkfs.xfs xfsprogs
need mkfs.btrfs btrfs-progs
python3 -c 'import ensurepip' >/dev/null 2>&1 || missing="$missing python3-venv"
header libaio.h libaio-dev
header liburing.h liburing-dev
header stdlib.h libc6-dev
ls /usr/lib/postgresql/*/bin/pg_amcheck >/dev/null 2>&1 || missing="$missing postgresql-15"

if [ -n "$missing" ]; then
	if [ "$(id -u)" != 0 ]; then
		echo "test.sh: missing packages, install them as root:$missing" >&2
		exit 1
	fi
	echo "test.sh: installing$missing"
	# The packages' services must not start: policy-rc.d says no, unless the host has its own policy.
	policy=/usr/sbin/policy-rc.d
	ours=
	if [ ! -e $policy ]; then
		ours=1
		printf '#!/bin/sh\nexit 101\n' >$policy
		chmod +x $policy
	fi
	export DEBIAN_FRONTEND=noninteractive
	status=0
	# shellcheck disable=SC2086 # a list of words
	{ apt-get update -q && apt-get install -qy --no-install-recommends $missing; } || status=$?
	[ -z "$ours" ] || rm -f $policy
	[ "$status" = 0 ] || exit "$status"
fi

step() {
	echo "== $*"
	"$@"
}

# A server of the S3 protocol that is not ours, for the archive; in a place of its own, made once.
s3=$(realpath -m "${CARGO_TARGET_DIR:-target}/s3")
if [ ! -e "$s3/ready" ]; then
	step python3 -m venv --clear "$s3"
	step "$s3/bin/pip" install -q 'moto[s3]==5.2.5' 'flask==3.1.3' 'flask-cors==6.0.5'
	touch "$s3/ready"
fi
export TOWLINE_S3_SERVER="$s3/bin/moto_server"

step cargo fmt --all --check
step cargo clippy --all-targets --features failpoints -- -D warnings
step shellcheck scripts/*.sh tests/e2e/py/*.sh tests/bench/*.sh
step cargo test --features failpoints --lib --bins
step cargo test --features failpoints --doc
step cargo test --features failpoints --test tidy
# Failpoints cost a lock at each durable step and nothing else: one build serves every suite. These tests wait far more
# than they compute: two at once take a third of a processor.
step cargo test --features failpoints --no-fail-fast --test e2e --test crash -- --test-threads=3 "$@"
# Every decoder for a moment, from its seeds; scripts/fuzz.sh 600 is the long run.
step env FUZZ_JOBS=2 scripts/fuzz.sh 10
echo "== all passed"
