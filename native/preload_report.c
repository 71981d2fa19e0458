// SPDX-License-Identifier: Apache-2.0
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "calls.h"
#include "preload.h"

/* No link is followed, no FIFO waited for, and no terminal becomes the program's. */
static int open_file(const char *path, int flags)
{
	return (int)raw_call(SYS_openat, AT_FDCWD, (long)path,
			     flags | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK | O_NOCTTY, 0600, 0, 0);
}

static void close_file(int fd)
{
	raw_call(SYS_close, fd, 0, 0, 0, 0, 0);
}

/*
 * A file of the launcher's, which nobody else can write or cut short: whoever
 * touches a page beyond its end would get SIGBUS.
 */
static bool is_ours(int fd)
{
	struct stat about;

	return !fstat(fd, &about) && S_ISREG(about.st_mode) && !(about.st_mode & 022) &&
	       (about.st_uid == geteuid() || !about.st_uid) &&
	       about.st_size >= (off_t)sizeof(struct preload_stats);
}

/* The launcher's counters; mapped once, for as long as the process lives. */
static struct preload_stats *shared_stats(void)
{
	static struct preload_stats *shared;
	struct preload_stats *mine = __atomic_load_n(&shared, __ATOMIC_ACQUIRE);
	struct preload_stats *other = NULL;
	int fd;

	if (mine || !preload_settings.stats)
		return mine;
	fd = open_file(preload_settings.stats, O_RDWR);
	if (fd < 0)
		return NULL;
	if (is_ours(fd)) {
		mine = mmap(NULL, sizeof(*mine), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
		if (mine == MAP_FAILED)
			mine = NULL;
	}
	close_file(fd);
	if (mine && !__atomic_compare_exchange_n(&shared, &other, mine, false, __ATOMIC_ACQ_REL,
						 __ATOMIC_ACQUIRE)) {
		munmap(mine, sizeof(*mine));	/* another thread was first */
		mine = other;
	}
	return mine;
}

static void add(uint64_t *counter, uint64_t count)
{
	__atomic_fetch_add(counter, count, __ATOMIC_RELAXED);
}

static void add_to_stats(const struct pf_mt *mt)
{
	struct preload_stats *stats = shared_stats();

	if (!stats)
		return;
	add(&stats->calls, mt->calls);
	add(&stats->passed, mt->passed);
	add(&stats->pages, mt->pages);
	add(&stats->bytes, mt->bytes);
	add(&stats->busy_us, mt->busy_us);
	add(&stats->repeated, mt->repeated);
	if (mt->workers > __atomic_load_n(&stats->workers, __ATOMIC_RELAXED))
		__atomic_store_n(&stats->workers, mt->workers, __ATOMIC_RELAXED);
}

static void write_log(const struct pf_mt *mt, const char *name, int32_t pid, int64_t result)
{
	bool to_stderr = !strcmp(preload_settings.log, "stderr");
	char line[256];
	int length, fd;

	if (mt->calls)
		length = snprintf(line, sizeof(line),
				  "pageferry[%d]: %s of process %d: %llu pages, %llu bytes in "
				  "%llu us by %u threads%s, returned %lld\n",
				  (int)getpid(), name, pid ? pid : (int)getpid(),
				  (unsigned long long)mt->pages, (unsigned long long)mt->bytes,
				  (unsigned long long)mt->busy_us, mt->workers,
				  mt->repeated ? ", then again by the kernel" : "",
				  (long long)result);
	else
		length = snprintf(line, sizeof(line),
				  "pageferry[%d]: %s of process %d: passed on, returned %lld\n",
				  (int)getpid(), name, pid ? pid : (int)getpid(),
				  (long long)result);
	fd = to_stderr ? STDERR_FILENO
		       : open_file(preload_settings.log, O_WRONLY | O_APPEND | O_CREAT);
	if (fd < 0)
		return;
	raw_call(SYS_write, fd, (long)line, length, 0, 0, 0);
	if (!to_stderr)
		close_file(fd);
}

void preload_report(const struct pf_mt *mt, const char *name, int32_t pid, int64_t result)
{
	if (preload_settings.stats)
		add_to_stats(mt);
	if (preload_settings.log)
		write_log(mt, name, pid, result);
}
