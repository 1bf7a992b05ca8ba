/* Random page writes into one file at a rate, and their lag on the other side.
 *
 *   pages SOURCE DEST SECONDS RATE
 *
 * Each write of 8 KiB goes to a random page; page 0 then takes the number of the write, every 10 ms. A
 * second thread polls page 0 of DEST each 200 us. Prints: writes, marks, lag p50 p99 max and the time from
 * the last write until it is visible, in microseconds. */
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#define PROGRAM "pages"
#include "clock.h"

#define PAGE 8192
#define MARKS 1000000

static double when[MARKS], lag[MARKS];
static unsigned long lags;
static volatile unsigned long written, last;
static const char *dest;

static void *watch(void *unused) {
	unsigned long seen = 0;
	int fd = open(dest, O_RDONLY);
	if (fd < 0)
		die(dest);
	double end = 0;
	while (!last || seen < last) {
		unsigned long mark = 0;
		if (pread(fd, &mark, sizeof mark, 0) == sizeof mark && mark > seen && mark <= written) {
			double t = now();
			for (unsigned long m = seen + 1; m <= mark; m++)
				lag[lags++] = t - when[m];
			seen = mark;
		}
		usleep(200);
		if (last && !end)
			end = now() + 30e6;
		if (end && now() > end) {
			fprintf(stderr, "pages: mark %lu of %lu seen 30 s after the end\n", seen, last);
			exit(1);
		}
	}
	return unused;
}

int main(int argc, char **argv) {
	if (argc < 5)
		return 2;
	dest = argv[2];
	double seconds = atof(argv[3]), rate = atof(argv[4]);
	int fd = open(argv[1], O_RDWR);
	struct stat st;
	if (fd < 0 || fstat(fd, &st))
		die(argv[1]);
	long pages = st.st_size / PAGE;
	unsigned long zero = 0;
	if (pwrite(fd, &zero, sizeof zero, 0) != sizeof zero)
		die("pwrite");
	sleep(2);
	pthread_t thread;
	if (pthread_create(&thread, NULL, watch, NULL))
		die("thread");
	char page[PAGE];
	unsigned long long rng = 88172645463325252ull;
	double start = now(), mark_at = start;
	unsigned long n = 0, mark = 0;
	while (now() - start < seconds * 1e6) {
		for (int i = 0; i < PAGE; i += 8) {
			rng ^= rng << 13, rng ^= rng >> 7, rng ^= rng << 17;
			memcpy(page + i, &rng, 8);
		}
		if (pwrite(fd, page, PAGE, (off_t)(1 + rng % (pages - 1)) * PAGE) != PAGE)
			die("pwrite");
		n++;
		if (now() >= mark_at) {
			mark++;
			if (pwrite(fd, &mark, sizeof mark, 0) != sizeof mark)
				die("pwrite");
			when[mark] = now();
			written = mark;
			mark_at += 10000;
		}
		double due = start + n / rate * 1e6 - now();
		if (due > 0)
			usleep(due);
	}
	mark++;
	if (pwrite(fd, &mark, sizeof mark, 0) != sizeof mark)
		die("pwrite");
	when[mark] = now();
	written = mark;
	last = mark;
	pthread_join(thread, NULL);
	double tail = now() - when[mark];
	qsort(lag, lags, sizeof *lag, order);
	printf("%lu %lu %.0f %.0f %.0f %.0f\n", n, mark, lag[lags / 2], lag[lags * 99 / 100], lag[lags - 1], tail);
	return 0;
}
