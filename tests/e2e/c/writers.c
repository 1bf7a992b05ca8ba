/* Writes a file through one of the kernel's ways to write. Deterministic by seed.
 *
 *   writers MODE FILE SEED [HOLD_MS]
 *
 * HOLD_MS: keep the file (or the mapping) open that long after the last write.
 * Modes stores and aiostores: the file is kept open while standard input lasts; each line asks for a change of
 * all of its pages, through a mapping or by libaio, and is answered by one.
 * Exit 77: this host does not offer the mode. */
#include <errno.h>
#include <fcntl.h>
#include <libaio.h>
#include <liburing.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#define PAGE 4096
#define PAGES 256

static unsigned long long rng;

static void die(const char *what) {
	fprintf(stderr, "writers: %s: %s\n", what, strerror(errno));
	exit(1);
}

static unsigned long long next(void) {
	rng ^= rng << 13;
	rng ^= rng >> 7;
	rng ^= rng << 17;
	return rng;
}

static void fill(char *p, size_t n) {
	for (size_t i = 0; i + 8 <= n; i += 8) {
		unsigned long long v = next();
		memcpy(p + i, &v, 8);
	}
}

static char *aligned(void) {
	void *p;
	if (posix_memalign(&p, PAGE, PAGE))
		die("posix_memalign");
	return p;
}

static void full_pwrite(int fd, const char *p, size_t n, off_t at) {
	if (pwrite(fd, p, n, at) != (ssize_t)n)
		die("pwrite");
}

static void buffered(int fd) {
	char *page = aligned();
	for (int i = 0; i < PAGES; i++) {
		fill(page, PAGE);
		full_pwrite(fd, page, 1 + next() % PAGE, next() % (PAGES * PAGE));
	}
}

static void odirect(const char *path) {
	int fd = open(path, O_RDWR | O_CREAT | O_DIRECT, 0644);
	if (fd < 0)
		exit(errno == EINVAL ? 77 : 1);
	char *page = aligned();
	for (int i = 0; i < PAGES; i++) {
		fill(page, PAGE);
		full_pwrite(fd, page, PAGE, (off_t)(next() % PAGES) * PAGE);
	}
	close(fd);
}

static void aio(int fd) {
	io_context_t ctx = 0;
	if (io_setup(8, &ctx))
		exit(77);
	char *page = aligned();
	for (int i = 0; i < PAGES; i++) {
		struct iocb cb, *list[1] = {&cb};
		struct io_event event;
		fill(page, PAGE);
		io_prep_pwrite(&cb, fd, page, PAGE, (long long)(next() % PAGES) * PAGE);
		if (io_submit(ctx, 1, list) != 1 || io_getevents(ctx, 1, 1, &event, NULL) != 1 || event.res != PAGE)
			die("libaio");
	}
	io_destroy(ctx);
}

static void uring(int fd) {
	struct io_uring ring;
	if (io_uring_queue_init(8, &ring, 0))
		exit(77);
	char *page = aligned();
	for (int i = 0; i < PAGES; i++) {
		struct io_uring_cqe *cqe;
		fill(page, PAGE);
		struct io_uring_sqe *sqe = io_uring_get_sqe(&ring);
		io_uring_prep_write(sqe, fd, page, PAGE, (off_t)(next() % PAGES) * PAGE);
		if (io_uring_submit(&ring) != 1 || io_uring_wait_cqe(&ring, &cqe) || cqe->res != PAGE)
			die("io_uring");
		io_uring_cqe_seen(&ring, cqe);
	}
	io_uring_queue_exit(&ring);
}

/* The mapping is alive, the descriptor is not; stores come in two rounds, so that the second meets dirty pages. */
static void mapped(int fd, int hold_ms) {
	if (ftruncate(fd, PAGES * PAGE))
		die("ftruncate");
	char *map = mmap(NULL, PAGES * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	if (map == MAP_FAILED)
		die("mmap");
	close(fd);
	for (int round = 0; round < 2; round++) {
		for (int i = 0; i < PAGES / 2; i++)
			fill(map + (next() % PAGES) * PAGE, 64);
		usleep(round == 0 ? hold_ms * 1000 : 0);
	}
	usleep(hold_ms * 1000);
	munmap(map, PAGES * PAGE);
}

/* The same pages again and again: but for the first time, each store meets a page that is dirty. */
static void stores(int fd) {
	if (ftruncate(fd, PAGES * PAGE))
		die("ftruncate");
	char *map = mmap(NULL, PAGES * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	if (map == MAP_FAILED)
		die("mmap");
	close(fd);
	for (int c; (c = getchar()) != EOF;) {
		if (c != '\n')
			continue;
		for (int i = 0; i < PAGES; i++)
			fill(map + i * PAGE, 64);
		puts("stored");
		fflush(stdout);
	}
}

/* Written, mapped at once, and stored to twice: the second time into a page that was read in between. */
static void brief(int fd) {
	char page[PAGE];
	fill(page, PAGE);
	if (write(fd, page, PAGE) != PAGE)
		die("write");
	char *map = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	if (map == MAP_FAILED)
		die("mmap");
	close(fd);
	fill(map, 64);
	usleep(20000);
	fill(map + 128, 64);
	munmap(map, PAGE);
}

static void aiostores(int fd) {
	for (int c; (c = getchar()) != EOF;) {
		if (c != '\n')
			continue;
		aio(fd);
		puts("stored");
		fflush(stdout);
	}
}

static void holes(int fd) {
	buffered(fd);
	for (int i = 0; i < 20; i++) {
		off_t at = next() % (PAGES * PAGE);
		int flags = i % 3 == 0 ? FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE
			: i % 3 == 1   ? FALLOC_FL_ZERO_RANGE
				       : 0;
		if (fallocate(fd, flags, at, 1 + next() % (64 << 10)) && errno != EOPNOTSUPP)
			die("fallocate");
	}
	if (fallocate(fd, FALLOC_FL_COLLAPSE_RANGE, 8 * PAGE, 8 * PAGE) && errno != EOPNOTSUPP)
		die("collapse");
	if (fallocate(fd, FALLOC_FL_INSERT_RANGE, 16 * PAGE, 4 * PAGE) && errno != EOPNOTSUPP)
		die("insert");
	if (fallocate(fd, FALLOC_FL_KEEP_SIZE, PAGES * PAGE, 1 << 20) && errno != EOPNOTSUPP)
		die("keep size");
}

static void truncates(int fd) {
	char *page = aligned();
	for (int i = 0; i < 60; i++) {
		off_t size = next() % (PAGES * PAGE);
		if (ftruncate(fd, size))
			die("ftruncate");
		fill(page, PAGE);
		full_pwrite(fd, page, 1 + next() % PAGE, next() % (size + 1));
	}
	/* Down and up again: what was cut off must come back as zeros. */
	if (ftruncate(fd, 10000) || ftruncate(fd, 90000))
		die("ftruncate");
}

static void appends(const char *path) {
	for (int p = 0; p < 8; p++) {
		pid_t pid = fork();
		if (pid < 0)
			die("fork");
		if (pid == 0) {
			int fd = open(path, O_WRONLY | O_APPEND | O_CREAT, 0644);
			if (fd < 0)
				die("open");
			for (int i = 0; i < 250; i++) {
				char line[64];
				int n = snprintf(line, sizeof line, "%d %d %llx\n", p, i, next());
				if (write(fd, line, n) != n)
					die("write");
			}
			_exit(0);
		}
	}
	int status;
	while (wait(&status) > 0)
		if (status)
			exit(1);
}

static void copies(int fd, const char *path) {
	char other[4096];
	snprintf(other, sizeof other, "%s.copy", path);
	buffered(fd);
	int to = open(other, O_RDWR | O_CREAT, 0644);
	if (to < 0)
		die("open");
	off_t from = 0;
	ssize_t n;
	while ((n = copy_file_range(fd, &from, to, NULL, 1 << 20, 0)) > 0)
		;
	if (n < 0)
		die("copy_file_range");
	close(to);
}

int main(int argc, char **argv) {
	if (argc < 4)
		return 2;
	const char *mode = argv[1], *path = argv[2];
	int hold_ms = argc > 4 ? atoi(argv[4]) : 0;
	rng = strtoull(argv[3], NULL, 10) * 2654435761u + 88172645463325252ull;
	if (!strcmp(mode, "odirect")) {
		odirect(path);
		return 0;
	}
	if (!strcmp(mode, "append")) {
		appends(path);
		return 0;
	}
	int fd = open(path, O_RDWR | O_CREAT, 0644);
	if (fd < 0)
		die("open");
	if (!strcmp(mode, "mmap")) {
		mapped(fd, hold_ms);
		return 0;
	}
	if (!strcmp(mode, "brief")) {
		brief(fd);
		return 0;
	}
	if (!strcmp(mode, "stores")) {
		stores(fd);
		return 0;
	}
	if (!strcmp(mode, "aiostores")) {
		aiostores(fd);
		return 0;
	}
	if (!strcmp(mode, "buffered"))
		buffered(fd);
	else if (!strcmp(mode, "libaio"))
		aio(fd);
	else if (!strcmp(mode, "io_uring"))
		uring(fd);
	else if (!strcmp(mode, "holes"))
		holes(fd);
	else if (!strcmp(mode, "truncate"))
		truncates(fd);
	else if (!strcmp(mode, "copy"))
		copies(fd, path);
	else
		return 2;
	usleep(hold_ms * 1000);
	return 0;
}
