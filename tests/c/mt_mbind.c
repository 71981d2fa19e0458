// SPDX-License-Identifier: Apache-2.0
/*
 * mbind(2) by several threads lists each page of a range once, and each of them,
 * wherever they are: side by side, or far apart in an empty mapping.
 */
#include <stdint.h>
#include <sys/mman.h>
#include <unistd.h>

#include "nodes.h"
#include "pageferry.h"
#include "test.h"

enum { BIND = 2, MOVE = 2, ROUNDS = 24 / SLOWER, ISLANDS = 48, FAR_PAGES = 600 };

#define ARENA (16ull << 30)
#define DENSE (24ull << 20)
#define ISLAND (320ull << 10)

static uint64_t page;
static uint64_t seed = 1;

/* Xorshift: below a bound, the same in each run. */
static uint64_t random_below(uint64_t bound)
{
	seed ^= seed << 13;
	seed ^= seed >> 7;
	seed ^= seed << 17;
	return seed % bound;
}

static void touch(char *from, uint64_t bytes)
{
	uint64_t i;

	for (i = 0; i < bytes; i += page)
		from[i] = 1;
}

static char *somewhere(char *arena, uint64_t bytes)
{
	return arena + random_below((ARENA - bytes) / page) * page;
}

/* One of the ways to fill a mapping. */
static void fill(char *arena, int layout)
{
	int i;

	if (layout == 0)
		touch(somewhere(arena, DENSE), DENSE);
	for (i = 0; layout == 1 && i < ISLANDS; i++)
		touch(somewhere(arena, ISLAND), ISLAND);
	for (i = 0; layout == 2 && i < FAR_PAGES; i++)
		touch(somewhere(arena, page), page);
	if (layout == 3) {	/* both ends */
		touch(arena, DENSE / 2);
		touch(arena + ARENA - page, page);
	}
}

/* Islands may overlap, so the kernel is asked. */
static uint64_t present(char *arena)
{
	struct pf_survey survey = {
		.start = (uintptr_t)arena, .end = (uintptr_t)arena + ARENA, .pagemap_fd = -1,
		.kpageflags_fd = -1, .method = PF_SURVEY_SCAN,
	};
	static struct pf_extent extents[4096];
	FILE *pagemap = fopen("/proc/self/pagemap", "r");
	uint64_t pages = 0;
	int64_t n, i;

	CHECK(pagemap);
	survey.pagemap_fd = fileno(pagemap);
	while (survey.start < survey.end) {
		n = pf_survey_next(&survey, extents, 4096);
		if (n < 0) {	/* Linux before 6.7 */
			CHECK(survey.method == PF_SURVEY_SCAN);
			survey.method = PF_SURVEY_PAGEMAP;
		}
		for (i = 0; i < n; i++)
			pages += extents[i].pages;
	}
	fclose(pagemap);
	return pages;
}

static void check(int layout, uint32_t threads, int node)
{
	char *arena = mmap(NULL, ARENA, PROT_READ | PROT_WRITE,
			   MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	struct pf_mt mt = { .threads = threads };
	uint64_t mask = 1ull << node;

	CHECK(arena != MAP_FAILED && !madvise(arena, ARENA, MADV_NOHUGEPAGE));
	fill(arena, layout);
	CHECK(!pf_mt_mbind(&mt, (uintptr_t)arena, ARENA, BIND, &mask, 65, MOVE));
	if (mt.pages != present(arena)) {
		fprintf(stderr, "layout %d, %u threads: %llu pages of %llu\n", layout, threads,
			(unsigned long long)mt.pages, (unsigned long long)present(arena));
		exit(1);
	}
	CHECK(mt.calls == 1 && !mt.passed);
	CHECK(!munmap(arena, ARENA));
}

int main(void)
{
	int nodes[2], count = memory_nodes(nodes, 2);
	int round, layout;

	page = (uint64_t)sysconf(_SC_PAGESIZE);
	for (round = 0; round < ROUNDS; round++)
		for (layout = 0; layout < 4; layout++)
			check(layout, round % 2 ? 2 : 4, nodes[round % count]);
	puts("mt_mbind: ok");
	return 0;
}
