#!/bin/sh
# Installs towline: program, manual pages, completions, systemd units, and an example configuration. Or removes
# exactly what it installed, and never a configuration or data.
#
#   scripts/install.sh [OPTION...]
#   scripts/install.sh --uninstall [OPTION...]
#
#   --prefix DIR          where to; default: /usr/local
#   --destdir DIR         put everything below DIR, for packages; nothing on this host is told of it
#   --program FILE        the program; default: target/release/towline
#   --unitdir DIR         units; default: PREFIX/lib/systemd/system, or /etc/systemd/system if systemd doesn't look there
#   --systemd VERSION     the systemd that the units are for; default: this host's
#
# It may be run again: what is there is replaced, what an earlier version installed and this one doesn't is removed.
set -eu
umask 022
cd "$(dirname "$0")/.."

say() { printf 'install.sh: %s\n' "$*" >&2; }
fail() { # fail CODE TEXT
	say "$2"
	exit "$1"
}
usage() { sed -n '2,/^set -eu/{/^#/!d;s/^# \{0,1\}//p;}' scripts/install.sh; }

prefix=/usr/local
destdir=
program=${CARGO_TARGET_DIR:-target}/release/towline
unitdir=
systemd=
uninstall=
while [ $# -gt 0 ]; do
	case $1 in
	--uninstall) uninstall=1 ;;
	-h | --help) usage && exit 0 ;;
	--prefix | --destdir | --program | --unitdir | --systemd)
		[ $# -ge 2 ] || fail 2 "$1 needs a value"
		case $1 in
		--prefix) prefix=$2 ;;
		--destdir) destdir=$2 ;;
		--program) program=$2 ;;
		--unitdir) unitdir=$2 ;;
		--systemd) systemd=$2 ;;
		esac
		shift
		;;
	*) fail 2 "unknown option '$1'; --help lists them" ;;
	esac
	shift
done
for dir in "$prefix" ${unitdir:+"$unitdir"} ${destdir:+"$destdir"}; do
	case $dir in
	/*) ;;
	*) fail 2 "'$dir' is not absolute; name a directory from the root on" ;;
	esac
	case $dir in
	*[!A-Za-z0-9/._+-]*) fail 2 "'$dir' has letters that units and lists can't hold; use letters, digits and / . _ + -" ;;
	esac
done
prefix=${prefix%/}
destdir=${destdir%/}

if [ -z "$unitdir" ]; then
	case $prefix in
	/usr | /usr/local) unitdir=$prefix/lib/systemd/system ;;
	*) unitdir=/etc/systemd/system ;;
	esac
fi
case $prefix in
'' | /usr) confdir=/usr/lib ;;
/usr/local) confdir=/usr/local/lib ;;
*) confdir=/etc ;;
esac
share=$prefix/share
list=$share/towline/installed
old=
if [ -f "$destdir$list" ]; then
	old=$(cat "$destdir$list")
fi

# Whether the running system is the one that is installed on.
live() { [ -z "$destdir" ] && [ "$(id -u)" = 0 ] && [ -d /run/systemd/system ] && command -v systemctl >/dev/null; }

removed() { # removed FILE: takes one file away that a list names
	case $1 in
	/*/../* | */.. | '' | [!/]*) fail 1 "'$destdir$list' is damaged: '$1'; remove the files by hand" ;;
	esac
	rm -f "$destdir$1"
	# Directories of ours go too, unless anything else is in them.
	dir=$(dirname "$1")
	while [ "$dir" != "${dir%/towline*}" ] && rmdir "$destdir$dir" 2>/dev/null; do
		dir=$(dirname "$dir")
	done
}

if [ -n "$uninstall" ]; then
	[ -n "$old" ] || fail 1 "'$destdir$list' is not there: nothing was installed to this prefix"
	if live; then
		running=$(systemctl list-units --plain --no-legend --state=active 'towline@*' 'towline-check@*' 'towline-basebackup@*' | cut -d' ' -f1)
		running=$(printf '%s' "$running" | tr '\n' ' ')
		[ -z "$running" ] || fail 1 "these run and need what would be removed; stop and disable them first: $running"
	fi
	printf '%s\n' "$old" | while read -r file; do
		removed "$file"
	done
	removed "$list"
	! live || systemctl daemon-reload
	say "removed; configurations in /etc/towline and data are as they were"
	exit 0
fi

[ -x "$program" ] || fail 1 "'$program' is no program; build it with 'cargo build --release', or name it with --program"
if [ -z "$systemd" ]; then
	systemd=$(systemctl --version 2>/dev/null | sed -n '1s/^systemd \([0-9]*\).*/\1/p')
fi
# Where there is none the units are for the newest.
systemd=${systemd:-999}
case $systemd in
*[!0-9]*) fail 2 "'$systemd' is no version of systemd; write a number, like 257" ;;
esac

new=
mkdir -p "$destdir$share/towline"
put() { # put MODE FROM TO: one file, replaced as a whole
	[ ! -d "$destdir$3" ] || fail 1 "'$destdir$3' is a directory; it should be a file of towline: move it away and run this again"
	mkdir -p "$destdir$(dirname "$3")"
	# First into the list: what is broken off can be removed, too.
	printf '%s\n' "$3" >>"$destdir$list"
	install -m "$1" "$2" "$destdir$3.new"
	mv -f "$destdir$3.new" "$destdir$3"
	new="$new$3
"
}
unit() { # unit FROM TO: a unit, with the place of the program in it
	text=$(mktemp)
	sed "s#/usr/bin/towline#$prefix/bin/towline#g; s#/usr/lib/towline/#$prefix/lib/towline/#g" "$1" >"$text"
	put 644 "$text" "$2"
	rm -f "$text"
}

put 755 "$program" "$prefix/bin/towline"
for page in man/*.[15]; do
	put 644 "$page" "$share/man/man${page##*.}/${page##*/}"
done
put 644 scripts/completions/towline.bash "$share/bash-completion/completions/towline"
put 644 scripts/completions/_towline "$share/zsh/site-functions/_towline"
put 644 scripts/completions/towline.fish "$share/fish/vendor_completions.d/towline.fish"
for example in scripts/examples/*.toml; do
	put 644 "$example" "$share/doc/towline/examples/${example##*/}"
done
for script in check-cron.sh basebackup.sh; do
	put 755 "scripts/$script" "$prefix/lib/towline/$script"
done
for file in systemd/*@.service systemd/*@.timer; do
	unit "$file" "$unitdir/${file##*/}"
done
if [ "$systemd" -lt 253 ]; then
	put 644 systemd/before-253/reload.conf "$unitdir/towline@.service.d/reload.conf"
fi
put 644 systemd/towline.sysusers "$confdir/sysusers.d/towline.conf"
put 644 systemd/towline.tmpfiles "$confdir/tmpfiles.d/towline.conf"

printf '%s\n' "$old" | while read -r file; do
	case "
$new" in
	*"
$file
"*) ;;
	*) [ -z "$file" ] || removed "$file" ;;
	esac
done
printf '%s' "$new" >"$destdir$list.new"
mv -f "$destdir$list.new" "$destdir$list"

if live; then
	systemd-sysusers "$confdir/sysusers.d/towline.conf"
	systemd-tmpfiles --create "$confdir/tmpfiles.d/towline.conf"
	systemctl daemon-reload
	say "installed; write /etc/towline/NAME.toml (examples in $share/doc/towline/examples), then: systemctl enable --now towline@NAME"
else
	say "installed below ${destdir:-$prefix}; units are in $unitdir, accounts and directories for systemd in $confdir"
fi
