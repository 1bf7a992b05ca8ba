/* Writes counter n to A, then to B, for ever: in every state that ever existed, B <= A <= B + 1.
 *
 *   order DIR PAUSE_US
 *
 * Three pairs at once, each written A first: in place (DIR/ia, DIR/ib), by rename (DIR/ra, DIR/sub/rb),
 * and a large A of which the last bytes are written last (DIR/la, DIR/lb). */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define LARGE (256 << 10)

static void die(const char *what) {
	fprintf(stderr, "order: %s: %s\n", what, strerror(errno));
	exit(1);
}

static int opened(const char *dir, const char *name) {
	char path[4096];
	snprintf(path, sizeof path, "%s/%s", dir, name);
	int fd = open(path, O_RDWR | O_CREAT, 0644);
	if (fd < 0)
		die(path);
	return fd;
}

static void count_to(int fd, unsigned long n) {
	char text[32];
	int len = snprintf(text, sizeof text, "%020lu\n", n);
	if (pwrite(fd, text, len, 0) != len)
		die("pwrite");
}

static void rename_to(const char *dir, const char *name, unsigned long n) {
	char aside[4096], path[4096];
	snprintf(aside, sizeof aside, "%s/aside", dir);
	snprintf(path, sizeof path, "%s/%s", dir, name);
	int fd = open(aside, O_RDWR | O_CREAT | O_EXCL, 0644);
	if (fd < 0)
		die(aside);
	count_to(fd, n);
	close(fd);
	if (rename(aside, path))
		die("rename");
}

static void large_to(int fd, char *buf, unsigned long n) {
	snprintf(buf, 32, "%020lu", n);
	memcpy(buf + LARGE - 32, buf, 32);
	if (pwrite(fd, buf, LARGE, 0) != LARGE)
		die("pwrite");
}

int main(int argc, char **argv) {
	if (argc < 3)
		return 2;
	char sub[4096];
	snprintf(sub, sizeof sub, "%s/sub", argv[1]);
	if (mkdir(sub, 0755) && errno != EEXIST)
		die(sub);
	int ia = opened(argv[1], "ia"), ib = opened(argv[1], "ib");
	int la = opened(argv[1], "la"), lb = opened(argv[1], "lb");
	char *buf = calloc(1, LARGE);
	for (unsigned long n = 1;; n++) {
		count_to(ia, n);
		count_to(ib, n);
		rename_to(argv[1], "ra", n);
		rename_to(argv[1], "sub/rb", n);
		if (n % 8 == 0) {
			large_to(la, buf, n);
			count_to(lb, n);
		}
		if (atoi(argv[2]))
			usleep(atoi(argv[2]));
	}
}
