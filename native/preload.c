// SPDX-License-Identifier: Apache-2.0
/*
 * libpageferry_preload.so: put before a program with LD_PRELOAD, it takes the
 * calls of move_pages, mbind and migrate_pages, by libnuma's names and through
 * syscall(3), and has several threads do them. Everything else goes straight to
 * the kernel. Nothing is printed, and no thread is started, before there is
 * something to move.
 */
#include <errno.h>
#include <pthread.h>
#include <unistd.h>

#include "calls.h"
#include "preload.h"
#include "signals.h"

enum { MOVE = 1 << 1, MOVE_ALL = 1 << 2, FEWEST_PAGES = 8 };

#define EXPORT __attribute__((visibility("default")))

/*
 * The process whose crew this is. In a child of vfork(2), which runs in its
 * parent's memory, threads must not be started: they would end with exec.
 */
static pid_t owner;

static int kernel_has_mt = -1;

static void note_owner(void)
{
	owner = (pid_t)raw_call(SYS_getpid, 0, 0, 0, 0, 0, 0);
}

static __attribute__((constructor)) void preload_start(void)
{
	preload_read_settings();
	note_owner();
	pthread_atfork(NULL, NULL, note_owner);
}

/* A stock kernel would refuse the flag; a patched one is to have it. */
static bool kernel_takes_mt(void)
{
	int known = __atomic_load_n(&kernel_has_mt, __ATOMIC_RELAXED);

	if (known < 0) {
		known = pf_kernel_has_mt();
		__atomic_store_n(&kernel_has_mt, known, __ATOMIC_RELAXED);
	}
	return known;
}

/* Is this a call for several threads? flag: it asks for them itself. */
static bool wanted(bool flag)
{
	if (preload_settings.mode == PRELOAD_NEVER)
		return false;
	if (flag ? kernel_takes_mt() : preload_settings.mode != PRELOAD_ALWAYS)
		return false;
	return owner == (pid_t)raw_call(SYS_getpid, 0, 0, 0, 0, 0, 0);
}

/* The flags for the kernel alone. Without a flag to move, ours is wrong: EINVAL. */
static long plain(long flags)
{
	if (flags & PF_MPOL_MF_MOVE_MT && flags & (MOVE | MOVE_ALL) &&
	    (preload_settings.mode == PRELOAD_NEVER || !kernel_takes_mt()))
		flags &= ~(long)PF_MPOL_MF_MOVE_MT;
	return flags;
}

/*
 * As in the kernel, handlers of signals have to wait for the end of the call:
 * they may fork, move pages themselves, or never return.
 */
static void enter(struct pf_mt *mt, sigset_t *before)
{
	uint32_t i;

	signals_block(before);
	mt->threads = preload_threads(&mt->cpus);
	mt->measure = preload_settings.stats || preload_settings.log;
	for (i = 0; i < PF_NODE_WORDS; i++)
		mt->memory_nodes[i] = preload_settings.memory_nodes[i];
}

static void leave(const struct pf_mt *mt, const char *name, int32_t pid, int64_t result,
		  const sigset_t *signals)
{
	preload_report(mt, name, pid, result);
	signals_restore(signals);
}

static __attribute__((noinline)) long take_move_pages(long pid, long count, long pages,
						      long nodes, long status, long flags)
{
	struct pf_mt mt = { .threads = 0 };
	int before = errno;
	sigset_t signals;
	int64_t result;

	if (!nodes || (unsigned long)count < FEWEST_PAGES ||
	    !wanted(flags & PF_MPOL_MF_MOVE_MT))
		return raw_call(SYS_move_pages, pid, count, pages, nodes, status, plain(flags));
	enter(&mt, &signals);
	result = pf_mt_move_pages(&mt, (int32_t)pid, (uint64_t)count, (const uint64_t *)pages,
				  (const int32_t *)nodes, (int32_t *)status, (int32_t)flags);
	leave(&mt, "move_pages", (int32_t)pid, result, &signals);
	errno = before;
	return result;
}

static __attribute__((noinline)) long take_mbind(long start, long length, long mode, long mask,
						 long maxnode, long flags)
{
	struct pf_mt mt = { .threads = 0 };
	int before = errno;
	sigset_t signals;
	int64_t result;

	if (!(flags & (MOVE | MOVE_ALL)) || !wanted(flags & PF_MPOL_MF_MOVE_MT))
		return raw_call(SYS_mbind, start, length, mode, mask, maxnode, plain(flags));
	enter(&mt, &signals);
	result = pf_mt_mbind(&mt, (uint64_t)start, (uint64_t)length, (int32_t)mode,
			     (const uint64_t *)mask, (uint64_t)maxnode, (uint32_t)flags);
	leave(&mt, "mbind", 0, result, &signals);
	errno = before;
	return result;
}

static __attribute__((noinline)) long take_migrate_pages(long pid, long maxnode, long from,
							 long to)
{
	struct pf_mt mt = { .threads = 0 };
	int before = errno;
	sigset_t signals;
	int64_t result;

	if (!wanted(false))
		return raw_call(SYS_migrate_pages, pid, maxnode, from, to, 0, 0);
	enter(&mt, &signals);
	result = pf_mt_migrate_pages(&mt, (int32_t)pid, (uint64_t)maxnode,
				     (const uint64_t *)from, (const uint64_t *)to);
	leave(&mt, "migrate_pages", (int32_t)pid, result, &signals);
	errno = before;
	return result;
}

/* As the C library hands on what the kernel says. */
static inline long handed_on(long result)
{
	if ((unsigned long)result >= -4095ul) {
		errno = (int)-result;
		return -1;
	}
	return result;
}

/*
 * Not through the headers' declarations: libnuma's may not be installed, and
 * syscall(3) takes its arguments in the registers of six longs, however many it
 * is given.
 */
EXPORT long pf_preload_move_pages(long pid, long count, long pages, long nodes, long status,
				  long flags) __asm__("move_pages");
EXPORT long pf_preload_mbind(long start, long length, long mode, long mask, long maxnode,
			     long flags) __asm__("mbind");
EXPORT long pf_preload_migrate_pages(long pid, long maxnode, long from,
				     long to) __asm__("migrate_pages");

long pf_preload_move_pages(long pid, long count, long pages, long nodes, long status, long flags)
{
	return handed_on(take_move_pages(pid, count, pages, nodes, status, flags));
}

long pf_preload_mbind(long start, long length, long mode, long mask, long maxnode, long flags)
{
	return handed_on(take_mbind(start, length, mode, mask, maxnode, flags));
}

long pf_preload_migrate_pages(long pid, long maxnode, long from, long to)
{
	return handed_on(take_migrate_pages(pid, maxnode, from, to));
}

#if PF_RAW_CALLS
EXPORT long pf_preload_syscall(long number, long a, long b, long c, long d, long e,
			       long f) __asm__("syscall");

long pf_preload_syscall(long number, long a, long b, long c, long d, long e, long f)
{
	if (number == SYS_move_pages)
		return handed_on(take_move_pages(a, b, c, d, e, f));
	if (number == SYS_mbind)
		return handed_on(take_mbind(a, b, c, d, e, f));
	if (number == SYS_migrate_pages)
		return handed_on(take_migrate_pages(a, b, c, d));
	return handed_on(raw_call(number, a, b, c, d, e, f));
}
#endif
