// SPDX-License-Identifier: Apache-2.0
/* The warm pool: what is taken is populated and whole, the bound holds, a fork gets none. */
#include <errno.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include "pageferry.h"
#include "pool.h"
#include "test.h"

#define MIB ((size_t)1 << 20)
#define FULL 0x5aa5u

static uint32_t base;		/* shift of a base page */
static size_t page;

static bool mapped(const void *address)
{
	unsigned char present;

	return !mincore((void *)((uintptr_t)address & ~(page - 1)), page, &present);
}

/* Pages of a range that are there without anybody touching it. */
static size_t present(const void *address, size_t bytes)
{
	static unsigned char vector[16384];
	size_t i, count = 0;

	CHECK(bytes / page <= sizeof(vector));
	CHECK(!mincore((void *)(uintptr_t)address, bytes, vector));
	for (i = 0; i < bytes / page; i++)
		count += vector[i] & 1;
	return count;
}

static void refuses_nonsense(void)
{
	CHECK(pf_pool_reserve(-1, base, MIB, 1, NULL) == -EINVAL);
	CHECK(pf_pool_reserve(PF_MAX_NODES, base, MIB, 1, NULL) == -EINVAL);
	CHECK(pf_pool_reserve(0, base - 1, MIB, 1, NULL) == -EINVAL);
	CHECK(pf_pool_reserve(0, base, MIB + 1, 1, NULL) == -EINVAL);
	CHECK(pf_pool_reserve(0, base, MIB, 0, NULL) == -EINVAL);
	CHECK(pf_pool_reserve(0, base, 0, 1, NULL) == 0);
	CHECK(pf_pool_reserve(PF_MAX_NODES - 1, base, MIB, 1, NULL) < 0);	/* no such node */
	CHECK(pf_pool_reserve(0, base, (uint64_t)1 << 60, 1, NULL) == -ENOMEM);
	CHECK(!pf_pool_bytes(0, base) && !pf_pool_bytes(PF_MAX_NODES - 1, base));
	CHECK(!pf_pool_release(0, base, MIB));
	CHECK(!pool_take(0, base, page));
	CHECK(!pool_take(0, base, 0));
	CHECK(!pool_take(0, 64, 0));
}

static void taken_is_populated(void)
{
	unsigned char *a, *b;

	CHECK(pf_pool_reserve(0, base, 16 * MIB, 2, NULL) >= 0);
	CHECK(pf_pool_bytes(0, base) == 16 * MIB);
	CHECK(!pool_take(0, base, 17 * MIB));
	CHECK(!pool_take(0, base, page + 1));
	CHECK(!pool_take(0, base + 1, 2 * page) && !pool_take(1, base, page));
	a = pool_take(0, base, 3 * MIB);
	b = pool_take(0, base, 13 * MIB);
	CHECK(a && b && !pool_take(0, base, page));
	CHECK(!((uintptr_t)a % page) && !((uintptr_t)b % page));
	CHECK(a + 3 * MIB <= b || b + 13 * MIB <= a);
	CHECK(present(a, 3 * MIB) == 3 * MIB / page && present(b, 13 * MIB) == 13 * MIB / page);
	memset(a, 1, 3 * MIB);
	memset(b, 2, 13 * MIB);
	CHECK(a[0] == 1 && a[3 * MIB - 1] == 1);
	CHECK(!pf_pool_bytes(0, base));
	/* In pieces, out of order, and joined again. */
	pool_give(0, base, b + MIB, 12 * MIB);
	pool_give(0, base, a, 3 * MIB);
	pool_give(0, base, b, MIB);
	CHECK(pf_pool_bytes(0, base) == 16 * MIB);
	b = pool_take(0, base, 13 * MIB);
	CHECK(b);
	pool_give(0, base, b, 13 * MIB);
	/* Taken memory is its new owner's: the pool is none the worse if it is unmapped. */
	a = pool_take(0, base, page);
	CHECK(a && !munmap(a, page) && pf_pool_bytes(0, base) == 16 * MIB - page);
	CHECK(pf_pool_release(0, base, 16 * MIB) == (int64_t)(16 * MIB - page));
	CHECK(!mapped(b) && !pf_pool_bytes(0, base));
}

/* Never more than reserved, whoever gives. */
static void the_bound_holds(void)
{
	unsigned char *a, *b;

	CHECK(pf_pool_reserve(0, base, 4 * MIB, 1, NULL) >= 0);
	CHECK(pf_pool_reserve(0, base, 4 * MIB, 1, NULL) >= 0);
	CHECK(pf_pool_bytes(0, base) == 8 * MIB);
	a = pool_take(0, base, 4 * MIB);
	CHECK(pf_pool_release(0, base, 2 * MIB) == 0);	/* lent out: nothing to unmap yet */
	pool_give(0, base, a, 4 * MIB);
	CHECK(pf_pool_bytes(0, base) == 6 * MIB);
	CHECK(mapped(a) && !mapped(a + 2 * MIB) && !mapped(a + 4 * MIB - 1));
	b = mmap(NULL, MIB, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1,
		 0);
	CHECK(b != MAP_FAILED);
	pool_give(0, base, b, MIB);		/* full */
	CHECK(pf_pool_bytes(0, base) == 6 * MIB && !mapped(b));
	b = mmap(NULL, MIB, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1,
		 0);
	CHECK(b != MAP_FAILED);
	pool_give(3, base, b, MIB);		/* nothing was reserved there */
	CHECK(!pf_pool_bytes(3, base) && !mapped(b));
	CHECK(pf_pool_release(0, base, MIB + 1) == -EINVAL);	/* a part of a page */
	CHECK(pf_pool_bytes(0, base) == 6 * MIB && mapped(a + 2 * MIB - 1));
	CHECK(pf_pool_release(0, base, UINT64_MAX) == (int64_t)(6 * MIB));
	CHECK(!pf_pool_bytes(0, base) && !mapped(a));
}

/* False where this kernel gives no huge pages. */
static bool huge_pages(void)
{
	size_t huge = 2 * MIB;
	unsigned char *a;
	int result = pf_pool_reserve(0, 21, 8 * huge, 2, NULL);

	if (result == -ENOMEM || result == -EINVAL) {
		CHECK(!pf_pool_bytes(0, 21));
		return false;
	}
	CHECK(result >= 0);
	CHECK(pf_pool_reserve(0, 21, MIB, 1, NULL) == -EINVAL);
	CHECK(!pool_take(0, 21, MIB));
	a = pool_take(0, 21, 3 * huge);
	CHECK(a && !((uintptr_t)a % huge));
	CHECK(present(a, 3 * huge) == 3 * huge / page);
	pool_give(0, 21, a, 3 * huge);
	CHECK(pf_pool_release(0, 21, 8 * huge) == (int64_t)(8 * huge));
	return true;
}

static void a_fork_gets_none(void)
{
	unsigned char *lent;
	unsigned char *a;
	int status;
	pid_t child;

	CHECK(pf_pool_reserve(0, base, 4 * MIB, 1, NULL) >= 0);
	a = pool_take(0, base, 2 * MIB);
	lent = a;
	memset(lent, 7, 2 * MIB);
	child = fork();
	CHECK(child >= 0);
	if (!child) {
		/* Its pool is empty, the memory is not there, and reserving works. */
		if (pf_pool_bytes(0, base) || pool_take(0, base, page) || mapped(lent))
			_exit(1);
		if (pf_pool_reserve(0, base, MIB, 1, NULL) < 0 || pf_pool_bytes(0, base) != MIB)
			_exit(2);
		_exit(pf_pool_release(0, base, MIB) == (int64_t)MIB ? 0 : 3);
	}
	CHECK(waitpid(child, &status, 0) == child && WIFEXITED(status));
	CHECK(WEXITSTATUS(status) == 0);
	CHECK(pf_pool_bytes(0, base) == 2 * MIB && lent[2 * MIB - 1] == 7);
	pool_give(0, base, lent, 2 * MIB);
	CHECK(pf_pool_release(0, base, 4 * MIB) == (int64_t)(4 * MIB));
}

/* Each thread marks what it takes: a piece that two have would show. */
static void *taker(void *arg)
{
	uint32_t seed = (uint32_t)(uintptr_t)arg;
	uint32_t mark = seed | FULL << 8;
	int i;

	for (i = 0; i < 3000; i++) {
		size_t pages, j;
		uint32_t *memory;

		seed = seed * 1664525 + 1013904223;
		pages = 1 + (seed >> 20) % 32;
		memory = pool_take(0, base, pages * page);
		if (!memory)
			continue;
		for (j = 0; j < pages; j++)
			memory[j * page / sizeof(*memory)] = mark;
		for (j = 0; j < pages; j++)
			CHECK(memory[j * page / sizeof(*memory)] == mark);
		/* Sometimes in two parts, so that pieces split and join. */
		j = seed >> 10 & 1 ? pages / 2 : 0;
		pool_give(0, base, memory, j * page);
		pool_give(0, base, (uint8_t *)memory + j * page, (pages - j) * page);
	}
	return NULL;
}

static void *forker(void *arg)
{
	int i, status;

	for (i = 0; i < 30; i++) {
		pid_t child = fork();

		if (!child)
			_exit(pf_pool_bytes(0, base) ? 1 : 0);
		CHECK(child > 0 && waitpid(child, &status, 0) == child);
		CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 0);
	}
	return arg;
}

static void many_threads(void)
{
	pthread_t threads[5];
	uintptr_t i;

	CHECK(pf_pool_reserve(0, base, 256 * page, 2, NULL) >= 0);
	for (i = 0; i < 4; i++)
		CHECK(!pthread_create(&threads[i], NULL, taker, (void *)(i + 1)));
	CHECK(!pthread_create(&threads[4], NULL, forker, NULL));
	for (i = 0; i < 100; i++) {
		CHECK(pf_pool_reserve(0, base, 16 * page, 1, NULL) >= 0);
		CHECK(pf_pool_release(0, base, 16 * page) >= 0);
	}
	for (i = 0; i < 5; i++)
		pthread_join(threads[i], NULL);
	/* A piece that was out when the bound went down was unmapped; none is held twice. */
	CHECK(pf_pool_bytes(0, base) <= 256 * page);
	pf_pool_release(0, base, UINT64_MAX);
	CHECK(!pf_pool_bytes(0, base));
}

static void address_space_and_its_pages(void)
{
	unsigned char *a = mmap(NULL, 4 * MIB, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS,
				-1, 0);
	uint64_t start = (uint64_t)(uintptr_t)a;

	CHECK(a != MAP_FAILED);
	a[5] = 5;
	CHECK(pf_populate(start, 4 * MIB, 0, base, 0, 2, NULL) >= 0);
	CHECK(a[5] == 5 && !a[6] && present(a, 4 * MIB) == 4 * MIB / page);
	CHECK(pf_populate(start + 1, MIB, 0, base, 0, 1, NULL) == -EINVAL);
	CHECK(pf_populate(start, MIB + 1, 0, base, 0, 1, NULL) == -EINVAL);
	CHECK(pf_populate(start, MIB, 0, base, 0, 0, NULL) == -EINVAL);
	CHECK(pf_populate(UINT64_MAX - page + 1, 2 * page, 0, base, 0, 1, NULL) == -EINVAL);
	CHECK(pf_populate(start, 0, 0, base, 0, 1, NULL) == 0);
	CHECK(!mprotect(a, MIB, PROT_READ));
	CHECK(pf_populate(start, 4 * MIB, 0, base, 0, 2, NULL) < 0);	/* not writable */
	CHECK(!munmap(a, 4 * MIB));
	CHECK(pf_populate(start, 4 * MIB, 0, base, 0, 2, NULL) < 0);	/* not there */

	CHECK(pf_map(0, base, 0) == -EINVAL && pf_map(MIB, base - 1, 0) == -EINVAL);
	CHECK(pf_map(MIB, 64, 0) == -EINVAL && pf_map(UINT64_MAX, base, 0) == -ENOMEM);
	a = (unsigned char *)(uintptr_t)pf_map(3 * MIB, 21, 0);
	CHECK(!((uintptr_t)a % (2 * MIB)) && mapped(a + 3 * MIB - 1));
	CHECK(pf_populate((uintptr_t)a, 2 * MIB, 0, base, PF_POPULATE_LATER, 1, NULL) >= 0);
	CHECK(!present(a, 3 * MIB));
	CHECK(!pf_unmap((uintptr_t)a, 3 * MIB) && !mapped(a));
}

int main(void)
{
	bool huge;

	alarm(600 * SLOWER);
	page = (size_t)sysconf(_SC_PAGESIZE);
	base = (uint32_t)__builtin_ctzl(page);
	refuses_nonsense();
	taken_is_populated();
	the_bound_holds();
	huge = huge_pages();
	a_fork_gets_none();
	many_threads();
	address_space_and_its_pages();
	pf_crew_stop();
	printf("pool: ok%s\n", huge ? "" : " (no huge pages here)");
	return 0;
}
