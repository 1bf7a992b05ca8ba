/* Lag from "write returned" to "visible on the follower", one operation at a time on a quiet tree.
 *
 *   lag SOURCE DEST COUNT PAUSE_MS KIND [FLOOR]      KIND: create, append, replace
 *
 * SOURCE and DEST are the same directory on the two sides. The clock starts when the last system call of
 * the operation returned; it stops when the bytes can be read under the name in DEST. An inotify
 * descriptor on DEST says when to look. Between the operations the floor is measured in the directory
 * FLOOR: what nobody can save is two appends of 256 bytes made durable one after the other, and a file
 * created. Prints microseconds: count p50 p90 p99 max, then the same of the floor. */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/inotify.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#define PROGRAM "lag"
#include "clock.h"

/* Whether the file ends with the line of operation i. */
static int visible(const char *path, const char *line) {
	char tail[64];
	size_t n = strlen(line);
	int fd = open(path, O_RDONLY);
	if (fd < 0)
		return 0;
	off_t size = lseek(fd, 0, SEEK_END);
	int ok = size >= (off_t)n && pread(fd, tail, n, size - n) == (ssize_t)n && !memcmp(tail, line, n);
	close(fd);
	return ok;
}

static void put(const char *path, int flags, const char *line) {
	int fd = open(path, O_WRONLY | O_CREAT | flags, 0644);
	if (fd < 0 || write(fd, line, strlen(line)) != (ssize_t)strlen(line) || close(fd))
		die(path);
}

static int logs[2] = {-1, -1};

static double floor_once(const char *dir, int i, const char *line) {
	char path[4096], block[256];
	memset(block, i, sizeof block);
	for (int k = 0; k < 2 && logs[k] < 0; k++) {
		snprintf(path, sizeof path, "%s/log%d", dir, k);
		logs[k] = open(path, O_WRONLY | O_CREAT, 0644);
		if (logs[k] < 0 || posix_fallocate(logs[k], 0, 1 << 20) || fsync(logs[k]))
			die(path);
	}
	double start = now();
	for (int k = 0; k < 2; k++)
		if (pwrite(logs[k], block, sizeof block, (off_t)i * sizeof block) != sizeof block || fdatasync(logs[k]))
			die("floor");
	snprintf(path, sizeof path, "%s/f%d", dir, i);
	put(path, O_TRUNC, line);
	return now() - start;
}

static void print(double *v, int count) {
	qsort(v, count, sizeof *v, order);
	printf("%d %.0f %.0f %.0f %.0f\n", count, v[count / 2], v[count * 9 / 10], v[count * 99 / 100], v[count - 1]);
}

int main(int argc, char **argv) {
	if (argc < 6)
		return 2;
	const char *kind = argv[5], *floor_dir = argc > 6 ? argv[6] : NULL;
	int count = atoi(argv[3]), pause_ms = atoi(argv[4]);
	double *lags = calloc(count, sizeof *lags), *floors = calloc(count, sizeof *floors);
	int in = inotify_init1(IN_NONBLOCK);
	if (in < 0 || inotify_add_watch(in, argv[2], IN_MODIFY | IN_CREATE | IN_MOVED_TO | IN_CLOSE_WRITE) < 0)
		die("inotify");
	for (int i = 0; i < count; i++) {
		char name[64], from[4096], to[4096], aside[4096], line[64], events[65536];
		snprintf(name, sizeof name, strcmp(kind, "create") ? "%s" : "%s%d", kind, i);
		snprintf(from, sizeof from, "%s/%s", argv[1], name);
		snprintf(to, sizeof to, "%s/%s", argv[2], name);
		snprintf(aside, sizeof aside, "%s/.aside", argv[1]);
		snprintf(line, sizeof line, "line %d of the measurement\n", i);
		if (floor_dir) {
			floors[i] = floor_once(floor_dir, i, line);
			usleep(pause_ms * 500);
		}
		if (!strcmp(kind, "replace")) {
			put(aside, O_TRUNC, line);
			if (rename(aside, from))
				die("rename");
		} else
			put(from, strcmp(kind, "append") ? O_TRUNC : O_APPEND, line);
		double start = now();
		while (!visible(to, line)) {
			struct pollfd p = {in, POLLIN, 0};
			/* 20 ms: a tool that changes attributes last gives no event for the name. */
			poll(&p, 1, 20);
			if (read(in, events, sizeof events) < 0 && errno != EAGAIN)
				die("inotify");
			if (now() - start > 30e6) {
				fprintf(stderr, "lag: operation %d not seen in 30 s\n", i);
				return 1;
			}
		}
		lags[i] = now() - start;
		usleep(pause_ms * (floor_dir ? 500 : 1000));
	}
	print(lags, count);
	if (floor_dir)
		print(floors, count);
	return 0;
}
