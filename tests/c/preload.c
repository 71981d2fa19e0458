// SPDX-License-Identifier: Apache-2.0
/*
 * A program that knows nothing of pageferry, to be run with and without the
 * preload library: each call through syscall(3) must answer as the kernel does.
 * Also with threads, signal handlers, fork and vfork.
 */
#include <errno.h>
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdint.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <unistd.h>

#include "calls.h"
#include "test.h"

enum { PAGES = 4096, MOVE = 2, MOVE_ALL = 4, STRICT = 1, BIND = 2, MEMS_ALLOWED = 4 };

static long page_size;
static char *memory;
static void *pages[PAGES];
static int nodes[PAGES];
static int status[PAGES], other[PAGES];
static int home;		/* a node that this process may use */
static atomic_int handled;

/* The same call both ways; the arrays it writes are compared as well. */
static void same(int line, long number, long a, long b, long c, long d, long e, long f)
{
	long raw, result;
	int error;

	memset(status, 0x55, sizeof(status));
	raw = raw_call(number, a, b, c, d, e, f);
	memcpy(other, status, sizeof(status));
	memset(status, 0x55, sizeof(status));
	errno = 77;
	result = syscall(number, a, b, c, d, e, f);
	error = errno;
	if (raw < 0 ? result != -1 || error != -raw : result != raw || error != 77) {
		fprintf(stderr, "line %d: kernel %ld, here %ld, errno %d\n", line, raw, result,
			error);
		exit(1);
	}
	if (memcmp(status, other, sizeof(status))) {
		fprintf(stderr, "line %d: other statuses\n", line);
		exit(1);
	}
}

#define SAME(number, a, b, c, d, e, f)                                                        \
	same(__LINE__, number, (long)(a), (long)(b), (long)(c), (long)(d), (long)(e), (long)(f))

/* An array of which only the first half can be read. */
static void *half_gone(const void *from, size_t bytes)
{
	size_t half = bytes / 2 & ~(size_t)(page_size - 1);
	char *copy = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	CHECK(copy != MAP_FAILED);
	memcpy(copy, from, bytes);
	CHECK(!munmap(copy + half, bytes - half));
	return copy;
}

static void move_pages_answers(void)
{
	void *bad = (void *)8, *half;
	char *readonly = mmap(NULL, sizeof(status), PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	int flags[] = { 0, MOVE, MOVE_ALL, STRICT, 1 << 6, 1 << 20 };
	size_t i;

	for (i = 0; i < sizeof(flags) / sizeof(*flags); i++) {
		SAME(SYS_move_pages, 0, PAGES, pages, nodes, status, flags[i]);
		SAME(SYS_move_pages, 0, PAGES, pages, NULL, status, flags[i]);
		SAME(SYS_move_pages, 0, 0, NULL, NULL, NULL, flags[i]);
		SAME(SYS_move_pages, 0, 1, pages, nodes, status, flags[i]);
	}
	SAME(SYS_move_pages, getpid(), PAGES, pages, nodes, status, MOVE);
	SAME(SYS_move_pages, 1 << 22, PAGES, pages, nodes, status, MOVE);
	SAME(SYS_move_pages, -1, PAGES, pages, nodes, status, MOVE);
	SAME(SYS_move_pages, 0, PAGES, bad, nodes, status, MOVE);
	SAME(SYS_move_pages, 0, PAGES, NULL, nodes, status, MOVE);
	SAME(SYS_move_pages, 0, PAGES, pages, bad, status, MOVE);
	SAME(SYS_move_pages, 0, PAGES, pages, nodes, bad, MOVE);
	SAME(SYS_move_pages, 0, PAGES, pages, nodes, NULL, MOVE);
	SAME(SYS_move_pages, 0, PAGES, pages, nodes, readonly, MOVE);
	SAME(SYS_move_pages, 0, 1l << 40, bad, nodes, status, MOVE);
	SAME(SYS_move_pages, 0, -1l, bad, nodes, status, MOVE);
	half = half_gone(pages, sizeof(pages));
	SAME(SYS_move_pages, 0, PAGES, half, nodes, status, MOVE);
	half = half_gone(nodes, sizeof(nodes));
	SAME(SYS_move_pages, 0, PAGES, pages, half, status, MOVE);
	half = half_gone(status, sizeof(status));
	SAME(SYS_move_pages, 0, PAGES, pages, nodes, half, MOVE);
	nodes[PAGES / 2] = 1000;
	SAME(SYS_move_pages, 0, PAGES, pages, nodes, status, MOVE);
	nodes[PAGES / 2] = -1;
	SAME(SYS_move_pages, 0, PAGES, pages, nodes, status, MOVE);
	nodes[PAGES / 2] = home;
	pages[PAGES / 3] = bad;
	pages[PAGES / 3 + 1] = pages[PAGES / 3 + 2];
	SAME(SYS_move_pages, 0, PAGES, pages, nodes, status, MOVE);
	pages[PAGES / 3] = memory + PAGES / 3 * page_size;
	pages[PAGES / 3 + 1] = memory + (PAGES / 3 + 1) * page_size;
	munmap(readonly, sizeof(status));
}

static void mbind_answers(void)
{
	unsigned long mask[64] = { 1ul << home }, none[64] = { 0 }, far[64] = { 0 };
	long size = PAGES * page_size;
	int flags[] = { 0, MOVE, MOVE | STRICT, MOVE_ALL, STRICT, 1 << 3, 1 << 6 };
	size_t i;

	far[63] = 1;
	for (i = 0; i < sizeof(flags) / sizeof(*flags); i++) {
		SAME(SYS_mbind, memory, size, BIND, mask, 65, flags[i]);
		SAME(SYS_mbind, memory, size, BIND, mask, 64 * 64, flags[i]);
		SAME(SYS_mbind, memory, size, BIND, none, 65, flags[i]);
		SAME(SYS_mbind, memory, size, BIND, far, 64 * 64, flags[i]);
		SAME(SYS_mbind, memory, size, BIND, NULL, 0, flags[i]);
		SAME(SYS_mbind, memory, size, BIND, 8, 65, flags[i]);
		SAME(SYS_mbind, memory, size, BIND, mask, 1ul << 40, flags[i]);
		SAME(SYS_mbind, memory + 1, size, BIND, mask, 65, flags[i]);
		SAME(SYS_mbind, memory, -page_size, BIND, mask, 65, flags[i]);
		SAME(SYS_mbind, memory, -1, BIND, mask, 65, flags[i]);
		SAME(SYS_mbind, page_size, size, BIND, mask, 65, flags[i]);
		SAME(SYS_mbind, memory, size, 99, mask, 65, flags[i]);
		SAME(SYS_mbind, memory, size, 0, NULL, 0, flags[i]);
	}
}

static void migrate_pages_answers(void)
{
	unsigned long mask[64] = { 1ul << home }, none[64] = { 0 }, far[64] = { 0 };

	far[63] = 1;
	SAME(SYS_migrate_pages, 0, 65, mask, mask, 0, 0);
	SAME(SYS_migrate_pages, getpid(), 65, mask, mask, 0, 0);
	SAME(SYS_migrate_pages, 0, 65, none, mask, 0, 0);
	SAME(SYS_migrate_pages, 0, 65, mask, none, 0, 0);
	SAME(SYS_migrate_pages, 0, 65, NULL, mask, 0, 0);
	SAME(SYS_migrate_pages, 0, 65, mask, NULL, 0, 0);
	SAME(SYS_migrate_pages, 0, 65, 8, mask, 0, 0);
	SAME(SYS_migrate_pages, 0, 65, mask, 8, 0, 0);
	SAME(SYS_migrate_pages, 0, 0, mask, mask, 0, 0);
	SAME(SYS_migrate_pages, 0, 64 * 64, far, mask, 0, 0);
	SAME(SYS_migrate_pages, 0, 64 * 64, mask, far, 0, 0);
	SAME(SYS_migrate_pages, 0, 1ul << 40, mask, mask, 0, 0);
	SAME(SYS_migrate_pages, 1 << 22, 65, mask, mask, 0, 0);
	SAME(SYS_migrate_pages, -5, 65, mask, mask, 0, 0);
}

static void other_calls(void)
{
	SAME(SYS_getpid, 0, 0, 0, 0, 0, 0);
	SAME(SYS_close, -1, 0, 0, 0, 0, 0);
	SAME(SYS_write, -1, memory, 1, 0, 0, 0);
	SAME(100000, 1, 2, 3, 4, 5, 6);
	SAME(SYS_mmap, 1, 2, 3, 4, 5, 6);
}

static void move_all(void)
{
	int answer[PAGES];
	int i;

	CHECK(syscall(SYS_move_pages, 0, PAGES, pages, nodes, answer, MOVE) == 0);
	for (i = 0; i < PAGES; i++)
		CHECK(answer[i] == home);
}

static void on_alarm(int number)
{
	int before = errno, answer[64];

	(void)number;
	if (syscall(SYS_move_pages, 0, 64, pages, nodes, answer, MOVE) ||
	    syscall(SYS_migrate_pages, 0, 0, NULL, NULL) == 0)
		_exit(3);
	atomic_fetch_add(&handled, 1);
	errno = before;
}

static void in_signal_handlers(void)
{
	struct sigaction action = { .sa_handler = on_alarm, .sa_flags = SA_RESTART };
	struct itimerval often = { { 0, 500 }, { 0, 500 } }, never = { { 0, 0 }, { 0, 0 } };
	int i;

	move_all();	/* threads are there: making some is not for a signal handler */
	CHECK(!sigaction(SIGALRM, &action, NULL));
	CHECK(!setitimer(ITIMER_REAL, &often, NULL));
	for (i = 0; i < 1000 && atomic_load(&handled) < 20; i++)
		move_all();
	CHECK(!setitimer(ITIMER_REAL, &never, NULL));
	CHECK(atomic_load(&handled) >= 20);
}

static sigjmp_buf back;

static void on_alarm_leave(int number)
{
	(void)number;
	siglongjmp(back, 1);
}

/* A handler that never returns does not leave a call half done. */
static void handlers_that_jump(void)
{
	struct sigaction action = { .sa_handler = on_alarm_leave };
	struct itimerval once = { { 0, 0 }, { 0, 200 } };
	volatile int jumps = 0;

	if (!HANDLERS_MAY_JUMP)
		return;
	CHECK(!sigaction(SIGALRM, &action, NULL));
	while (jumps < 20) {
		if (sigsetjmp(back, 1)) {
			jumps++;
			continue;
		}
		CHECK(!setitimer(ITIMER_REAL, &once, NULL));
		for (;;)
			move_all();
	}
}

static void *mover(void *arg)
{
	int i;

	(void)arg;
	for (i = 0; i < 8; i++)
		move_all();
	return NULL;
}

static void ended_well(pid_t child)
{
	int how;

	CHECK(waitpid(child, &how, 0) == child);
	CHECK(WIFEXITED(how) && !WEXITSTATUS(how));
}

/* Threads, forks between them, and children that move as well. */
static void threads_and_forks(void)
{
	pthread_t threads[3];
	pid_t child;
	int i;

	for (i = 0; i < 3; i++)
		CHECK(!pthread_create(&threads[i], NULL, mover, NULL));
	for (i = 0; i < 6; i++) {
		child = fork();
		CHECK(child >= 0);
		if (!child) {
			alarm(600 * SLOWER);
			if (CHILD_MAY_HAVE_THREADS)
				move_all();
			_exit(0);
		}
		ended_well(child);
	}
	for (i = 0; i < 3; i++)
		pthread_join(threads[i], NULL);
}

/* A child of vfork runs in this memory; it must not leave half a crew behind. */
static void vforks(void)
{
	static int answer[PAGES];
	pid_t child = vfork();

	if (!child)
		_exit(syscall(SYS_move_pages, 0, PAGES, pages, nodes, answer, MOVE) != 0);
	CHECK(child > 0);
	ended_well(child);
	move_all();
}

int main(void)
{
	unsigned long allowed[16] = { 0 };
	int i;

	page_size = sysconf(_SC_PAGESIZE);
	CHECK(!raw_call(SYS_get_mempolicy, 0, (long)allowed, 1025, 0, MEMS_ALLOWED, 0));
	while (home < 64 && !(allowed[0] >> home & 1))
		home++;
	memory = mmap(NULL, PAGES * page_size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS,
		      -1, 0);
	CHECK(memory != MAP_FAILED && home < 64);
	CHECK(!madvise(memory, PAGES * page_size, MADV_NOHUGEPAGE));
	for (i = 0; i < PAGES; i++) {
		memset(memory + i * page_size, 1 + i % 251, page_size);
		pages[i] = memory + i * page_size;
		nodes[i] = home;
	}
	/* With the kernel alone: where there are more nodes, some of it may be elsewhere. */
	CHECK(!raw_call(SYS_move_pages, 0, PAGES, (long)pages, (long)nodes, (long)status, MOVE));
	alarm(600 * SLOWER);
	move_pages_answers();
	mbind_answers();
	migrate_pages_answers();
	other_calls();
	alarm(0);
	in_signal_handlers();
	handlers_that_jump();
	alarm(600 * SLOWER);
	signal(SIGALRM, SIG_DFL);
	vforks();
	threads_and_forks();
	vforks();
	for (i = 0; i < PAGES; i++)
		CHECK(memory[i * page_size] == (char)(1 + i % 251));
	puts("preload: ok");
	return 0;
}
