#!/bin/sh
# For cron: runs `towline check` and prints its answer only when its state is another one than at the last run, so
# that cron mails when something goes wrong, when it changes, and when it is well again.
#
#   check-cron.sh STATE-FILE ARGUMENT...       arguments are those of `towline check`
#   check-cron.sh DIRECTORY [ARGUMENT...]      the file is DIRECTORY/check-cron.last; without arguments the node with
#                                              this state directory is asked
#
#   MAILTO=ops@example.org
#   * * * * * root /usr/local/lib/towline/check-cron.sh /var/lib/towline/app.check --config /etc/towline/app.toml
#
# TOWLINE names the program where it is not in PATH. The first run prints unless all is well. Exits 0 when it could
# ask and remember, whatever the answer was.
set -u

if [ $# -lt 1 ] || [ "${1#-}" != "$1" ]; then
	echo "usage: check-cron.sh STATE-FILE|DIRECTORY ARGUMENT...   (arguments of 'towline check')" >&2
	exit 2
fi
file=$1
shift
# A file can't be kept in the place of a directory: it would be news at every run.
if [ -d "$file" ]; then
	[ $# -gt 0 ] || set -- --state "$file"
	file=${file%/}/check-cron.last
fi

answer=$("${TOWLINE:-towline}" check "$@" 2>&1)
code=$?
case $code in
0) word=OK ;;
1) word=WARNING ;;
2) word=CRITICAL ;;
*) word=UNKNOWN ;;
esac

# The file holds the word, and since when.
last=OK
since=
if [ -e "$file" ]; then
	read -r last since <"$file" || :
fi
if [ "$word" = "$last" ] && [ -n "$since" ]; then
	exit 0
fi
now=$(date -u +%Y-%m-%dT%H:%M:%SZ)
if ! { printf '%s %s\n' "$word" "$now" >"$file.new" && mv -f "$file.new" "$file"; }; then
	echo "check-cron.sh: cannot remember the state in '$file'; this is said until it can" >&2
	[ "$word" = "$last" ] || printf '%s\n' "$answer"
	exit 1
fi
if [ "$word" != "$last" ]; then
	if [ -n "$since" ]; then
		echo "towline on $(uname -n): $word since $now, $last from $since"
	else
		echo "towline on $(uname -n): $word since $now"
	fi
	printf '%s\n' "$answer"
fi
exit 0
