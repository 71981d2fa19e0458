// SPDX-License-Identifier: Apache-2.0
/*
 * Random calls, each once by the kernel and once through syscall(3), where the
 * preload library may sit: same return, errno, statuses, and the same pages on
 * the same nodes afterwards. Arguments: ROUNDS SEED. Run with more than one
 * node, it moves; pages that are pinned make calls fail half-way.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdbool.h>
#include <stdint.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/uio.h>
#include <unistd.h>

#include "calls.h"
#include "test.h"

enum {
	BLOCKS = 48,		/* of 2 MiB, each of one kind of memory */
	EACH = 4,		/* pages of a block that are in use */
	KNOWN = BLOCKS * EACH,
	LISTED = 400,
	MOVE = 2, MOVE_ALL = 4, BIND = 2, PREFERRED = 1, STRICT = 1,
};

#define BLOCK (2ul << 20)

struct answer {
	long result;
	int error;
	int status[LISTED];
	int where[KNOWN];
};

static char *memory;
static void *known[KNOWN];	/* all pages that are in use */
static int begin[KNOWN];	/* where they are to be before each call */
static void *list[LISTED];
static int target[LISTED];
static struct answer kernel, ours;
static uint64_t state;
static int n_nodes;

static uint32_t any(uint32_t below)
{
	state = state * 6364136223846793005ull + 1442695040888963407ull;
	return (uint32_t)(state >> 33) % below;
}

static long move_raw(long count, void **pages, int *nodes, int *status, long flags)
{
	return raw_call(SYS_move_pages, 0, count, (long)pages, (long)nodes, (long)status, flags);
}

/* ---- Memory of several kinds --------------------------------------------------- */

static bool is_pinned(int i)
{
	return i == 2 * EACH + 1 || i == 3 * EACH || i == 37 * EACH + 2;
}

static void pin(int *ends, void *page)
{
	struct iovec vector = { .iov_base = page, .iov_len = 4096 };

	CHECK(vmsplice(ends[1], &vector, 1, 0) == 4096);
}

static void make_memory(void)
{
	int file = memfd_create("differential", MFD_CLOEXEC);
	int ends[2];
	char *at;
	int i, k;

	memory = mmap(NULL, (BLOCKS + 1) * BLOCK, PROT_READ | PROT_WRITE,
		      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	CHECK(memory != MAP_FAILED && file >= 0 && !pipe(ends));
	memory += -(uintptr_t)memory & (BLOCK - 1);
	CHECK(!madvise(memory, BLOCKS * BLOCK, MADV_NOHUGEPAGE));
	CHECK(!ftruncate(file, BLOCKS * BLOCK));
	for (i = 0; i < BLOCKS; i++) {
		at = memory + i * BLOCK;
		if (i % 12 == 5)		/* huge, where the kernel has them */
			madvise(at, BLOCK, MADV_HUGEPAGE);
		else if (i % 12 == 6)		/* shared with the page cache */
			CHECK(mmap(at, BLOCK, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED,
				   file, (off_t)(i * BLOCK)) == at);
		else if (i % 12 == 7)		/* nothing there */
			CHECK(!munmap(at, BLOCK));
		for (k = 0; k < EACH; k++) {
			char *page = at + 4096ul * (unsigned int)(k * 7 + i % 3);

			known[i * EACH + k] = page;
			if (i % 12 == 7 || (i % 12 == 8 && k == 1))
				continue;	/* a hole; a page not there */
			if (i % 12 == 9 && k == 2)
				CHECK(*page == 0);	/* the zero page */
			else
				memset(page, 1 + (i * EACH + k) % 251, 4096);
		}
	}
	for (i = 0; i < KNOWN; i++)
		if (is_pinned(i))
			pin(ends, known[i]);
}

static void check_memory(void)
{
	int i, k;

	for (i = 0; i < KNOWN; i++) {
		const char *page = known[i];
		int block = i / EACH;
		char want = (char)(1 + i % 251);

		if (block % 12 == 7 || (block % 12 == 8 && i % EACH == 1) ||
		    (block % 12 == 9 && i % EACH == 2))
			continue;
		for (k = 0; k < 4096; k += 64)
			CHECK(page[k] == want);
	}
}

/* ---- One call, both ways ----------------------------------------------------------- */

/* Pinned pages stay where they are; one of them would end the call for the others. */
static void set_begin(void)
{
	static void *movable[KNOWN];
	static int node[KNOWN], status[KNOWN];
	int count = 0, i;

	for (i = 0; i < KNOWN; i++) {
		if (is_pinned(i))
			continue;
		movable[count] = known[i];
		node[count++] = begin[i];
	}
	for (i = 0; i < 20; i++)
		if (!move_raw(count, movable, node, status, MOVE))
			return;
	CHECK(!"pages could not be put where the call is to find them");
}

static void look(struct answer *answer)
{
	CHECK(!move_raw(KNOWN, known, NULL, answer->where, 0));
}

static void compare(long round, const char *what)
{
	int i;

	if (kernel.result == ours.result && kernel.error == ours.error &&
	    !memcmp(kernel.status, ours.status, sizeof(kernel.status)) &&
	    !memcmp(kernel.where, ours.where, sizeof(kernel.where)))
		return;
	fprintf(stderr, "round %ld, %s: kernel %ld (%d), here %ld (%d)\n", round, what,
		kernel.result, kernel.error, ours.result, ours.error);
	for (i = 0; i < LISTED; i++)
		if (kernel.status[i] != ours.status[i])
			fprintf(stderr, "  status %d of %p: kernel %d, here %d\n", i, list[i],
				kernel.status[i], ours.status[i]);
	for (i = 0; i < KNOWN; i++)
		if (kernel.where[i] != ours.where[i])
			fprintf(stderr, "  page %p: kernel %d, here %d\n", known[i],
				kernel.where[i], ours.where[i]);
	exit(1);
}

static void both(long round, const char *what, long number, long a, long b, long c, long d,
		 long e, long f)
{
	long result;

	memset(kernel.status, 0x55, sizeof(kernel.status));
	memset(ours.status, 0x55, sizeof(ours.status));
	set_begin();
	if (e == 1)
		e = (long)kernel.status;
	result = raw_call(number, a, b, c, d, e, f);
	kernel.error = result < 0 ? (int)-result : 0;
	kernel.result = result < 0 ? -1 : result;
	look(&kernel);
	set_begin();
	if (e == (long)kernel.status)
		e = (long)ours.status;
	errno = 0;
	ours.result = syscall(number, a, b, c, d, e, f);
	ours.error = errno;
	look(&ours);
	compare(round, what);
}

/* ---- Random calls --------------------------------------------------------------------- */

static int make_list(void)
{
	int count = 0, first = (int)any(KNOWN / 2), step = 1 + (int)any(2), i, other;

	for (i = first; i < KNOWN && count < LISTED - 2; i += step) {
		list[count++] = known[i];
		if (!any(40))	/* twice, or the page beside it, maybe of the same THP */
			list[count++] = any(2) ? known[i] : (char *)known[i] + 4096;
	}
	switch (any(6)) {
	case 0:			/* downwards */
		for (i = 0; i < count / 2; i++) {
			void *page = list[i];

			list[i] = list[count - 1 - i];
			list[count - 1 - i] = page;
		}
		break;
	case 1:			/* in no order */
		for (i = 0; i < count; i++) {
			void *page = list[i];

			other = (int)any((uint32_t)count);
			list[i] = list[other];
			list[other] = page;
		}
		break;
	}
	return count;
}

static void make_targets(int count)
{
	int one = (int)any((uint32_t)n_nodes), kind = (int)any(8), i;

	for (i = 0; i < count; i++) {
		target[i] = one;
		if (kind == 0)
			target[i] = (int)any((uint32_t)n_nodes);
		else if (kind == 1)
			target[i] = i / 40 % n_nodes;
	}
	if (kind == 2)
		target[any((uint32_t)count)] = any(2) ? 999 : -1;
}

static void make_begin(void)
{
	int one = (int)any((uint32_t)n_nodes), kind = (int)any(4), i;

	for (i = 0; i < KNOWN; i++) {
		begin[i] = one;
		if (kind == 0 || (kind == 1 && !any(30)))
			begin[i] = (int)any((uint32_t)n_nodes);
	}
}

static void random_move_pages(long round)
{
	int count = make_list();
	long flags = any(3) ? MOVE : any(2) ? MOVE_ALL : (long)any(9);
	long pages = (long)list, nodes = (long)target, status = 1;

	make_targets(count);
	if (!any(25))
		nodes = 0;
	switch (any(60)) {
	case 0: pages = 8; break;
	case 1: nodes = 8; break;
	case 2: status = 8; break;
	case 3: count = 0; break;
	}
	both(round, "move_pages", SYS_move_pages, 0, count, pages, nodes, status, flags);
}

static void random_mbind(long round)
{
	unsigned long mask = 1ul << any((uint32_t)n_nodes + !any(10));
	long first = (long)any(BLOCKS / 2), blocks = 1 + (long)any(BLOCKS / 2);
	long mode = any(3) ? BIND : any(2) ? PREFERRED : 5;
	long flags = MOVE | (any(3) ? 0 : STRICT) | (any(6) ? 0 : MOVE_ALL);

	if (any(3))		/* between the holes */
		first = first / 12 * 12 + 8, blocks = blocks % 10 + 1;
	both(round, "mbind", SYS_mbind, (long)(memory + first * (long)BLOCK), blocks * (long)BLOCK,
	     mode, (long)&mask, 65, flags);
	CHECK(!raw_call(SYS_mbind, (long)memory, BLOCKS * BLOCK, 0, 0, 0, 0));
}

static void random_migrate_pages(long round)
{
	unsigned long from = any(1u << n_nodes), to = any(1u << n_nodes);

	both(round, "migrate_pages", SYS_migrate_pages, any(2) ? 0 : getpid(), 65, (long)&from,
	     (long)&to, 0, 0);
}

int main(int argc, char **argv)
{
	long rounds = argc > 1 ? atol(argv[1]) : 20, round;
	int node, status;

	state = argc > 2 ? strtoull(argv[2], NULL, 10) : 1;
	alarm(600 * SLOWER);
	make_memory();
	for (node = 0; node < 8; node++) {	/* nodes that can be moved to, from 0 on */
		if (move_raw(1, &known[0], &node, &status, MOVE))
			break;
		n_nodes++;
	}
	CHECK(n_nodes > 0);
	for (round = 0; round < rounds; round++) {
		make_begin();
		if (!any(6))
			random_mbind(round);
		else if (!any(8))
			random_migrate_pages(round);
		else
			random_move_pages(round);
	}
	check_memory();
	printf("preload differential: ok, %ld calls, %d nodes\n", rounds, n_nodes);
	return 0;
}
