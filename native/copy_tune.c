// SPDX-License-Identifier: Apache-2.0
/* Which way of copying is best on this machine: measured on memory of its own. */
#include <errno.h>
#include <stdbool.h>
#include <stddef.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>

#include "calls.h"
#include "copy.h"
#include "pageferry.h"

enum {
	ROOM = 4 << 20,		/* of source and of target */
	COLD_BYTES = 1 << 20,
	SMALLEST = 64 << 10,	/* as large as a copy is at which a method can change */
	REPEATS = 5,
	PAUSE_NS = 200000,	/* long enough for a helper to fall asleep */
};

struct bench {
	unsigned char *dst, *src;
};

static uint64_t now_ns(void)
{
	struct timespec time;

	clock_gettime(CLOCK_MONOTONIC, &time);
	return (uint64_t)time.tv_sec * 1000000000 + (uint64_t)time.tv_nsec;
}

/* The shortest of some copies, in ns; cold: neither side is in a cache. */
static uint64_t fastest(const struct bench *bench, uint64_t bytes, uint32_t method, bool cold)
{
	uint64_t best = UINT64_MAX;

	for (int i = 0; i < REPEATS; i++) {
		uint64_t begun, took;

		if (cold) {
			pf_copy_evict(bench->dst, bytes);
			pf_copy_evict(bench->src, bytes);
		}
		begun = now_ns();
		pf_copy_pages(bench->dst, bench->src, bytes, method);
		took = now_ns() - begun;
		/* What is not cold is warm from the time before. */
		if ((cold || i) && took < best)
			best = took ? took : 1;
	}
	return best;
}

static uint32_t fastest_method(const struct bench *bench)
{
	uint32_t methods = pf_copy_methods();
	uint32_t best = PF_COPY_MEMCPY;
	uint64_t shortest = UINT64_MAX;

	for (uint32_t method = 1; method < PF_COPY_METHODS; method++) {
		uint64_t took;

		if (!(methods >> method & 1))
			continue;
		took = fastest(bench, COLD_BYTES, method, true);
		if (took < shortest) {
			shortest = took;
			best = method;
		}
	}
	return best;
}

/*
 * Nobody knows whether the next copy finds its memory in the caches. So what
 * counts is which mistake costs less: what `method` loses on memory that is
 * there, or what memcpy loses on memory that is not.
 */
static bool costs_less(const struct bench *bench, uint64_t bytes, uint32_t method)
{
	double lost = (double)fastest(bench, bytes, method, false) /
		      (double)fastest(bench, bytes, PF_COPY_MEMCPY, false);
	double memcpy_lost = (double)fastest(bench, bytes, PF_COPY_MEMCPY, true) /
			     (double)fastest(bench, bytes, method, true);

	return lost <= memcpy_lost;
}

/* From above, as short times are less sure: a size below may qualify by chance. */
static uint64_t takes_over_at(const struct bench *bench, uint32_t method)
{
	uint64_t bytes = ROOM;

	while (bytes > SMALLEST && costs_less(bench, bytes / 2, method))
		bytes /= 2;
	return bytes;
}

/* Whether two threads are clearly faster than one; helpers are asleep before each try. */
static bool two_are_faster(const struct bench *bench, uint64_t bytes, const int32_t *cpus)
{
	static const struct timespec pause = { .tv_nsec = PAUSE_NS };
	uint32_t method = (uint32_t)pf_copy_choose(bytes, PF_COPY_AUTO);
	int won = 0;

	for (int i = 0; i < REPEATS; i++) {
		uint64_t begun, between, ended;

		nanosleep(&pause, NULL);
		begun = now_ns();
		pf_copy_pages(bench->dst, bench->src, bytes, method);
		between = now_ns();
		nanosleep(&pause, NULL);
		ended = now_ns();
		pf_copy_pages_mthread(bench->dst, bench->src, bytes, 2, cpus, method);
		won += (now_ns() - ended) * 10 < (between - begun) * 9;
	}
	return won > REPEATS / 2;
}

static uint64_t thread_bytes(const struct bench *bench, const int32_t *cpus)
{
	uint64_t bytes = ROOM;

	while (bytes > SMALLEST && two_are_faster(bench, bytes, cpus))
		bytes /= 2;
	return bytes;	/* twice this is the smallest at which two won */
}

int pf_copy_measure(struct pf_copy_tuning *found, const int32_t *cpus)
{
	struct pf_copy_tuning before;
	unsigned char *room;
	struct bench bench;

	room = mmap(NULL, 2 * ROOM, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (room == MAP_FAILED)
		return -errno;
	memset(room, 1, 2 * ROOM);
	bench.dst = room;
	bench.src = room + ROOM;
	pf_copy_tuned(&before);
	*found = before;
	if (pf_copy_evict(room, PF_LINE)) {
		found->large_method = fastest_method(&bench);
		found->large_bytes = takes_over_at(&bench, found->large_method);
	}
	found->thread_bytes = thread_bytes(&bench, cpus);
	unmap_memory(room, 2 * ROOM);
	return 0;
}
