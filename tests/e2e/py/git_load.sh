#!/bin/sh
# Commits in a loop, with branches, rewrites and gc: git_load.sh REPOSITORY SECONDS
set -eu
repo=$1
end=$(($(date +%s) + $2))
export GIT_AUTHOR_NAME=t GIT_AUTHOR_EMAIL=t@example.org GIT_COMMITTER_NAME=t GIT_COMMITTER_EMAIL=t@example.org
export GIT_CONFIG_GLOBAL=/dev/null GIT_CONFIG_SYSTEM=/dev/null
git() { command git -C "$repo" -c gc.auto=0 -c core.fsync=none "$@"; }
[ -d "$repo/.git" ] || git init -q
n=0
while [ "$(date +%s)" -lt "$end" ]; do
	n=$((n + 1))
	mkdir -p "$repo/d$((n % 7))"
	head -c $((n % 9 * 1000 + 10)) /dev/urandom | base64 >"$repo/d$((n % 7))/f$((n % 40))"
	git add -A
	git commit -q -m "commit $n"
	case $((n % 20)) in
	5) git branch -f side ;;
	9) git tag -f "t$((n % 3))" >/dev/null ;;
	13) git commit -q --amend -m "amended $n" ;;
	19) git gc -q --prune=now ;;
	esac
done
