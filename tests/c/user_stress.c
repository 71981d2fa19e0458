// SPDX-License-Identifier: Apache-2.0
/*
 * Writers that own words of every cache line, and readers that watch them,
 * while the engine moves the range back and forth in every way it has.
 * Usage: user_stress [INCREMENTS], by default ten million.
 */
#include <errno.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>

#include "user_memory.h"

enum {
	BYTES = 8 << 20,
	LINES = BYTES / 64,
	WRITERS = 2,
	READERS = 1,
	MOVES_MIN = 6,		/* per way and page size, however fast the writers are */
};

/* Words of a line: one for each writer, and a pair that writer 0 writes in order. */
enum { FIRST = 6, SECOND = 7 };

static volatile uint64_t *memory;
static atomic_bool stop;
static atomic_ullong increments;
static int nodes[2];
static int n_nodes;

static void *write_on(void *arg)
{
	uint64_t own = (uintptr_t)arg;
	uint64_t round;

	for (round = 1; !atomic_load(&stop); round++) {
		for (size_t line = 0; line < LINES; line++) {
			volatile uint64_t *words = memory + line * 8;

			CHECK(words[own] == round - 1);
			words[own] = round;
			if (own == 0) {
				__atomic_store_n(&words[FIRST], round, __ATOMIC_RELAXED);
				__atomic_store_n(&words[SECOND], round, __ATOMIC_RELEASE);
			}
		}
		atomic_fetch_add(&increments, LINES);
	}
	return (void *)(uintptr_t)(round - 1);
}

static void *read_on(void *arg)
{
	uint64_t *seen = calloc(LINES, sizeof(*seen));

	(void)arg;
	CHECK(seen);
	while (!atomic_load(&stop)) {
		for (size_t line = 0; line < LINES; line++) {
			volatile uint64_t *words = memory + line * 8;
			uint64_t second = __atomic_load_n(&words[SECOND], __ATOMIC_ACQUIRE);
			uint64_t first = __atomic_load_n(&words[FIRST], __ATOMIC_RELAXED);

			/* Written first, so it cannot be the older one; nor older than before. */
			CHECK(first >= second);
			CHECK(second >= seen[line]);
			seen[line] = second;
		}
	}
	free(seen);
	return NULL;
}

static void stress(uint32_t way, bool huge, unsigned long long target)
{
	static struct pf_extent left[MAX_LEFT];
	unsigned char *bytes = memory_new(BYTES, huge);
	struct pf_extent extent = extent_of(bytes, BYTES, huge);
	struct pf_user_progress all = { 0 };
	pthread_t writers[WRITERS], reader;
	uint64_t moves = 0;

	memory = (volatile uint64_t *)bytes;
	memset(bytes, 0, BYTES);
	atomic_store(&stop, false);
	atomic_store(&increments, 0);
	for (uintptr_t i = 0; i < WRITERS; i++)
		CHECK(!pthread_create(&writers[i], NULL, write_on, (void *)i));
	CHECK(!pthread_create(&reader, NULL, read_on, NULL));
	for (; atomic_load(&increments) < target || moves < MOVES_MIN; moves++) {
		struct pf_user call = user_call(nodes[moves % n_nodes], way, 1 + moves % 2, &extent,
						1, left);

		/* Pieces of many sizes; small ones come and go more often. */
		call.piece_bytes = 64u << 10 << moves % 7;
		call.flags |= moves % 3 ? 0 : PF_USER_NO_FILL;
		CHECK(pf_user_run(&call) == 0);
		CHECK(call.progress.bytes_moved + call.progress.bytes_left == BYTES);
		all.bytes_moved += call.progress.bytes_moved;
		all.bytes_left += call.progress.bytes_left;
		if (call.progress.stall_us_max > all.stall_us_max)
			all.stall_us_max = call.progress.stall_us_max;
	}
	atomic_store(&stop, true);
	for (uintptr_t i = 0; i < WRITERS; i++) {
		void *rounds;

		pthread_join(writers[i], &rounds);
		for (size_t line = 0; line < LINES; line++)
			CHECK(memory[line * 8 + i] == (uintptr_t)rounds);
	}
	pthread_join(reader, NULL);
	CHECK(all.bytes_moved > all.bytes_left);
	printf("way %u, %s pages: %llu increments, %" PRIu64 " moves, longest stall %" PRIu64 " us\n",
	       way, huge ? "huge" : "base", (unsigned long long)atomic_load(&increments), moves,
	       all.stall_us_max);
	CHECK(!munmap(bytes, BYTES));
}

int main(int argc, char **argv)
{
	unsigned long long target = argc > 1 ? strtoull(argv[1], NULL, 10) : 10000000 / SLOWER;
	bool thp = access("/sys/kernel/mm/transparent_hugepage/hpage_pmd_size", F_OK) == 0;
	int cases = 0;

	n_nodes = memory_nodes(nodes, 2);
	setvbuf(stdout, NULL, _IOLBF, 0);
	for (uint32_t way = PF_USER_CHECKED; way <= PF_USER_PROTECT; way++)
		for (int huge = 0; huge <= thp; huge++)
			cases += way_works(way, huge);
	for (uint32_t way = PF_USER_CHECKED; way <= PF_USER_PROTECT; way++)
		for (int huge = 0; huge <= thp; huge++)
			if (way_works(way, huge))
				stress(way, huge, target / (unsigned int)cases + 1);
	pf_crew_stop();
	printf("user stress: ok, %d cases, %d nodes\n", cases, n_nodes);
	return 0;
}
