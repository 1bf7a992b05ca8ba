/* Writes counter n to A, into every MiB of large files from the first to the last, and to B, for ever. In every
 * state that ever existed A >= first MiB >= ... >= last MiB >= B >= A - 1.
 *
 *   torn DIR FILES MIB       MIB: of each file */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static void die(const char *what) {
	fprintf(stderr, "torn: %s: %s\n", what, strerror(errno));
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

static void count_to(int fd, off_t at, unsigned long n) {
	char text[32];
	int len = snprintf(text, sizeof text, "%020lu\n", n);
	if (pwrite(fd, text, len, at) != len)
		die("pwrite");
}

int main(int argc, char **argv) {
	if (argc < 4)
		return 2;
	long files = atol(argv[2]), mib = atol(argv[3]);
	int a = opened(argv[1], "a"), b = opened(argv[1], "b");
	int *large = calloc(files, sizeof *large);
	for (long f = 0; f < files; f++) {
		char name[32];
		snprintf(name, sizeof name, "large%ld", f);
		large[f] = opened(argv[1], name);
	}
	/* One that was killed goes on with the number it was at. */
	char text[32] = "";
	unsigned long n = pread(a, text, sizeof text - 1, 0) > 0 ? strtoul(text, NULL, 10) : 1;
	for (;; n++) {
		count_to(a, 0, n);
		for (long f = 0; f < files; f++)
			for (long i = 0; i < mib; i++)
				count_to(large[f], i << 20, n);
		count_to(b, 0, n);
	}
}
