#!/bin/sh
# systemd as process 1 of namespaces of its own, with nothing of the host but its programs.
#
#   systemd_bed.sh ROOT NAME
#
# ROOT/etc, ROOT/srv, ROOT/usr/local and ROOT/var/lib take the place of the host's; /run, /tmp and /var/tmp are empty.
# Units come from ROOT/etc/systemd/targets, ROOT/etc/systemd/system and what is installed in ROOT/usr/local. Control
# groups called NAME are made where this process is; whoever started it removes them. "SKIP:" says what can't be had.
set -u
skip() { # skip TEXT
	echo "SKIP: $*"
	exit 77
}

if [ "$1" != --inside ]; then
	root=$1 name=$2
	[ "$(id -u)" = 0 ] || skip "only root can make the namespaces"
	[ -x /lib/systemd/systemd ] || skip "systemd is not installed"
	# Into groups of our own, so that nothing of the host's is seen or changed.
	while IFS=: read -r _ controllers path; do
		case $controllers in
		'') dir=/sys/fs/cgroup/unified && [ -d $dir ] || dir=/sys/fs/cgroup ;;
		cpuset | cpuset,* | *,cpuset) continue ;;
		name=*) dir=/sys/fs/cgroup/${controllers#name=} ;;
		*) dir=/sys/fs/cgroup/$controllers ;;
		esac
		[ -f "$dir$path/cgroup.procs" ] || continue
		mkdir -p "$dir$path/$name" 2>/dev/null || skip "no control group can be made in $dir$path"
		echo $$ >"$dir$path/$name/cgroup.procs" || skip "no process can be moved to $dir$path/$name"
	done </proc/self/cgroup
	unshare -m -p -f --mount-proc -C -i -u -n true 2>/dev/null || skip "namespaces can't be made"
	exec unshare -m -p -f --mount-proc -C -i -u -n --kill-child=KILL "$0" --inside "$root"
fi

root=$2
must() { "$@" 2>/dev/null || skip "this can't be done: $*"; }
unified=$(stat -f -c %T /sys/fs/cgroup)
must mount -o bind /proc/sys /proc/sys
must mount -o remount,bind,ro /proc/sys
must mount -t sysfs -o ro sysfs /sys
if [ "$unified" = cgroup2fs ]; then
	must mount -t cgroup2 cgroup2 /sys/fs/cgroup
else
	must mount -t tmpfs tmpfs /sys/fs/cgroup
	must mkdir /sys/fs/cgroup/unified /sys/fs/cgroup/systemd
	must mount -t cgroup2 cgroup2 /sys/fs/cgroup/unified
	must mount -t cgroup -o none,name=systemd cgroup /sys/fs/cgroup/systemd
fi
for dir in /etc /srv /usr/local /var/lib; do
	must mount -o bind "$root$dir" "$dir"
done
for dir in /run /tmp /var/tmp; do
	must mount -t tmpfs -o mode=755 tmpfs "$dir"
done
must chmod 1777 /tmp /var/tmp
exec env -i container=towline-bed PATH=/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin \
	SYSTEMD_UNIT_PATH=/etc/systemd/targets:/etc/systemd/system:/usr/local/lib/systemd/system \
	/lib/systemd/systemd --system --unit=bed.target --log-target=console --log-level=notice --show-status=no
