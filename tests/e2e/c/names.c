/* Name traffic that neither the shell nor Python can make.
 *
 *   names exchange A B COUNT          RENAME_EXCHANGE, COUNT times
 *   names tmpfile DIR COUNT           O_TMPFILE, write, linkat
 *   names nested DIR COUNT            mkdir -p DIR/N/a/b/c and write DIR/N/a/b/c/file at once, in a tight loop
 *   names replace DIR COUNT           write aside and rename over one of 10 names
 *   names burst DIR COUNT             create COUNT small files */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static void die(const char *what) {
	fprintf(stderr, "names: %s: %s\n", what, strerror(errno));
	exit(1);
}

static void put(int fd, const char *text) {
	size_t n = strlen(text);
	if (write(fd, text, n) != (ssize_t)n)
		die("write");
}

static int create(const char *path) {
	int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC, 0644);
	if (fd < 0)
		die(path);
	return fd;
}

static void tmpfile_link(const char *dir, int i) {
	char from[64], to[4096];
	int fd = open(dir, O_TMPFILE | O_WRONLY, 0600);
	if (fd < 0)
		exit(errno == EOPNOTSUPP ? 77 : 1);
	snprintf(to, sizeof to, "%s/t%d", dir, i);
	put(fd, to);
	snprintf(from, sizeof from, "/proc/self/fd/%d", fd);
	if (linkat(AT_FDCWD, from, AT_FDCWD, to, AT_SYMLINK_FOLLOW))
		die("linkat");
	close(fd);
}

static void nested(const char *dir, int i) {
	static const char *steps[] = {"", "/a", "/a/b", "/a/b/c"};
	char path[4096];
	for (int s = 0; s < 4; s++) {
		snprintf(path, sizeof path, "%s/%d%s", dir, i, steps[s]);
		if (mkdir(path, 0755))
			die(path);
	}
	snprintf(path, sizeof path, "%s/%d/a/b/c/file", dir, i);
	int fd = create(path);
	put(fd, path);
	close(fd);
}

static void replace(const char *dir, int i) {
	char aside[4096], to[4096];
	snprintf(aside, sizeof aside, "%s/.new%d", dir, i);
	snprintf(to, sizeof to, "%s/r%d", dir, i % 10);
	int fd = create(aside);
	put(fd, aside);
	close(fd);
	if (rename(aside, to))
		die("rename");
}

static void burst(const char *dir, int i) {
	char path[4096];
	snprintf(path, sizeof path, "%s/%d", dir, i);
	int fd = create(path);
	put(fd, path);
	close(fd);
}

int main(int argc, char **argv) {
	if (argc < 4)
		return 2;
	const char *mode = argv[1];
	int count = atoi(argv[argc - 1]);
	for (int i = 0; i < count; i++) {
		if (!strcmp(mode, "exchange")) {
			if (renameat2(AT_FDCWD, argv[2], AT_FDCWD, argv[3], RENAME_EXCHANGE))
				exit(errno == EINVAL ? 77 : 1);
		} else if (!strcmp(mode, "tmpfile"))
			tmpfile_link(argv[2], i);
		else if (!strcmp(mode, "nested"))
			nested(argv[2], i);
		else if (!strcmp(mode, "replace"))
			replace(argv[2], i);
		else if (!strcmp(mode, "burst"))
			burst(argv[2], i);
		else
			return 2;
	}
	return 0;
}
