#!/bin/sh
# For cron and systemd: takes a base backup, verifies it, and removes old ones. Silent when all is well, so that cron
# mails about trouble only.
#
#   basebackup.sh DIRECTORY HOST:PORT [OPTION...]    options are those of `towline basebackup`
#   basebackup.sh URL HOST:PORT [OPTION...]          into the archive there: file:///DIRECTORY, s3://BUCKET/PREFIX, ...
#
#   MAILTO=ops@example.org
#   30 2 * * * backup /usr/local/lib/towline/basebackup.sh /srv/backup/app db1:7400 --state /var/lib/towline/vault
#
# A backup is DIRECTORY/TIME, and is called so only once it is complete and verified. KEEP in the environment is how many of
# them stay (7); an older one goes only after a newer one was verified. TOWLINE names the program where it is not in PATH.
#
# In an archive the backup is labelled TIME, and is verified there. Then `towline archive prune` runs: KEEP is how many full
# backups stay with what stands on them, KEEP_DAYS of how many days every moment stays; given alone, it is the only rule. Log
# that no kept backup needs goes with them. Credentials come from the environment.
#
# Exits 0: done; 1: no backup could be taken; 2: wrong usage; 3: done, but the backup is not an exact cut; 4: the new backup
# is damaged, it is kept as TIME.bad (in an archive as TIME), and nothing is removed; 5: old backups can't be removed; 6: another run is not over.
set -u
umask 077

say() { printf 'basebackup.sh: %s\n' "$*" >&2; }
fail() { # fail CODE TEXT
	say "$2"
	exit "$1"
}

if [ $# -lt 2 ] || [ "${1#-}" != "$1" ]; then
	echo "usage: basebackup.sh DIRECTORY HOST:PORT [OPTION...]   (options of 'towline basebackup'; DIRECTORY may be the URL of an archive)" >&2
	exit 2
fi
dir=${1%/}
leader=$2
shift 2
keep=${KEEP:-7}
case $keep in
'' | *[!0-9]* | 0) fail 2 "KEEP is '$keep'; write how many backups stay, 1 at least" ;;
esac
towline=${TOWLINE:-towline}
label=$(date -u +%Y%m%dT%H%M%SZ)

judge() { # judge FILE: ends this unless $code says that there is a backup; FILE holds what was said
	case $code in
	0 | 3) return ;;
	esac
	cat "$1" >&2
	[ "$code" != 64 ] || fail 2 "the options are wrong"
	fail 1 "no backup of $leader was taken"
}

archive() { # archive URL HOST:PORT [OPTION...]
	url=$1
	leader=$2
	shift 2
	case ${KEEP_DAYS-} in
	*[!0-9]* | 0) fail 2 "KEEP_DAYS is '$KEEP_DAYS'; write of how many days every moment stays, 1 at least" ;;
	esac
	# The lock of an archive can't be there: it may be a bucket. Nobody else may put anything in its place.
	own=${TMPDIR:-/tmp}/towline-basebackup-$(id -u)
	mkdir -m 700 "$own" 2>/dev/null
	if [ ! -d "$own" ] || [ -L "$own" ] || [ ! -O "$own" ]; then
		fail 1 "'$own' can't be made, or belongs to somebody else"
	fi
	name=$(printf '%s' "$url" | cksum | tr -c '0-9\n' '-')
	exec 9>"$own/$name.lock" || fail 1 "'$own/$name.lock' can't be made"
	flock -n 9 || fail 6 "another run into '$url' is not over"
	said=$own/$name.last
	"$towline" basebackup --leader "$leader" --out "$url" --label "$label" "$@" >"$said" 2>&1 9>&-
	code=$?
	judge "$said"
	if ! "$towline" archive verify --archive "$url" --backup "$label" >"$said" 2>&1 9>&-; then
		cat "$said" >&2
		fail 4 "the backup '$label' of $leader in '$url' is damaged, or can't be read; no older one was removed"
	fi
	if [ -n "${KEEP_DAYS-}" ] && [ -n "${KEEP-}" ]; then
		set -- --keep-days "$KEEP_DAYS" --keep-full "$keep"
	elif [ -n "${KEEP_DAYS-}" ]; then
		set -- --keep-days "$KEEP_DAYS"
	else
		set -- --keep-full "$keep"
	fi
	if ! "$towline" archive prune --archive "$url" --yes "$@" >"$said" 2>&1 9>&-; then
		cat "$said" >&2
		fail 5 "old backups in '$url' can't be removed"
	fi
	rm -f "$said"
	if [ "$code" = 3 ]; then
		fail 3 "the backup '$label' in '$url' is complete, but no exact cut came in time: see --exact-timeout in towline-basebackup(1)"
	fi
	exit 0
}

case $dir in
*://*) archive "$dir" "$leader" "$@" ;;
esac
[ -n "$dir" ] || fail 2 "the root directory is no place for backups"
mkdir -p "$dir" || fail 1 "'$dir' can't be made"

# One at a time; the lock is gone with the process, however that ends.
exec 9>"$dir/.lock" || fail 1 "'$dir/.lock' can't be made"
flock -n 9 || fail 6 "another run in '$dir' is not over"

# What a run that was killed has left.
for part in "$dir"/*.part; do
	[ -d "$part" ] || continue
	rm -rf "$part" || say "'$part' is left of an earlier run and can't be removed"
done

new=$dir/$label.part
[ ! -e "$dir/$label" ] || fail 6 "'$dir/$label' is there already: another backup was taken in this second"
"$towline" basebackup --leader "$leader" --out "$new" --label "$label" "$@" >"$dir/.last" 2>&1 9>&-
code=$?
judge "$dir/.last"
if ! "$towline" verify "$new" >"$dir/.last" 2>&1 9>&-; then
	cat "$dir/.last" >&2
	mv "$new" "$dir/$label.bad"
	fail 4 "the backup of $leader is damaged; it is kept as '$dir/$label.bad', and no older one was removed"
fi
mv "$new" "$dir/$label" || fail 1 "'$new' can't be given its name"
rm -f "$dir/.last"

# The oldest first: what is complete, and has a name that this program gives.
count=0
for old in "$dir"/[0-9]*T[0-9]*Z; do
	[ ! -f "$old/manifest.json" ] || count=$((count + 1))
done
left=0
for old in "$dir"/[0-9]*T[0-9]*Z; do
	[ "$count" -gt "$keep" ] || break
	[ -f "$old/manifest.json" ] || continue
	# Without its manifest it is no backup any more, however far the rest gets.
	rm -f "$old/manifest.json" && rm -rf "$old" || left=1
	count=$((count - 1))
done
[ "$left" = 0 ] || fail 5 "an old backup in '$dir' can't be removed"
if [ "$code" = 3 ]; then
	fail 3 "the backup '$dir/$label' is complete, but no exact cut came in time: see --exact-timeout in towline-basebackup(1)"
fi
exit 0
