/* SPDX-License-Identifier: Apache-2.0 */
/* Memory for the tests of the user engine, what /proc says of it, and one call of the engine. */
#ifndef PAGEFERRY_USER_MEMORY_H
#define PAGEFERRY_USER_MEMORY_H

#include <fcntl.h>
#include <inttypes.h>
#include <stdbool.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "nodes.h"
#include "pageferry.h"
#include "test.h"

enum { MAX_LEFT = 4096 };

#define PAGE 4096ul
#define HUGE (2ul << 20)

/* Aligned to a huge page, with room around it so that no neighbour is merged with it. */
static inline unsigned char *memory_new(size_t bytes, bool huge)
{
	unsigned char *map = mmap(NULL, bytes + 2 * HUGE, PROT_NONE,
				  MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	unsigned char *memory;

	CHECK(map != MAP_FAILED);
	memory = map + HUGE - (uintptr_t)map % HUGE;
	CHECK(!mprotect(memory, bytes, PROT_READ | PROT_WRITE));
	CHECK(!madvise(memory, bytes, huge ? MADV_HUGEPAGE : MADV_NOHUGEPAGE));
	return memory;
}

/*
 * Every byte depends on its place; seed tells one filling from the next. Made and compared a word
 * at a time: under emulation each step takes as long as a hundred do on the machine itself.
 */
static inline NO_RACE_HERE uint64_t word_at(size_t i, unsigned int seed)
{
	uint64_t word = i / 8 * 0x9e3779b97f4a7c15u;

	return (word ^ word >> 32) + seed * 0x0101010101010101u;
}

static inline NO_RACE_HERE unsigned char byte_at(size_t i, unsigned int seed)
{
	return (unsigned char)(word_at(i, seed) >> i % 8 * 8);
}

static inline NO_RACE_HERE void fill(unsigned char *memory, size_t bytes, unsigned int seed)
{
	uint64_t *words = (uint64_t *)memory;

	CHECK(!((uintptr_t)memory % 8) && !(bytes % 8));
	for (size_t i = 0; i < bytes; i += 8)
		words[i / 8] = word_at(i, seed);
}

static inline NO_RACE_HERE void check_fill(const unsigned char *memory, size_t bytes, unsigned int seed)
{
	const uint64_t *words = (const uint64_t *)memory;

	CHECK(!((uintptr_t)memory % 8) && !(bytes % 8));
	for (size_t i = 0; i < bytes; i += 8) {
		if (words[i / 8] == word_at(i, seed))
			continue;
		while (memory[i] == byte_at(i, seed) && i % 8 < 7)
			i++;
		fprintf(stderr, "byte %zu is %u, not %u\n", i, memory[i], byte_at(i, seed));
		exit(1);
	}
}

/* Entries of /proc/self/pagemap for so many pages. */
static inline void pagemap(const void *memory, size_t pages, uint64_t *entries)
{
	int fd = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC);

	CHECK(fd >= 0);
	CHECK(pread(fd, entries, pages * 8, (off_t)((uintptr_t)memory / PAGE * 8)) ==
	      (ssize_t)(pages * 8));
	close(fd);
}

#define PAGEMAP_PRESENT (1ull << 63)
#define PAGEMAP_FRAME ((1ull << 55) - 1)

/* Mappings that have a byte in the range; the VmFlags of the last one. */
static inline int mappings_in(const void *memory, size_t bytes, char *flags, size_t room)
{
	uintptr_t start = (uintptr_t)memory, end = start + bytes;
	FILE *file = fopen("/proc/self/smaps", "r");
	char line[512];
	bool inside = false;
	int count = 0;

	CHECK(file);
	while (fgets(line, sizeof(line), file)) {
		uint64_t from, to;

		if (sscanf(line, "%" SCNx64 "-%" SCNx64 " ", &from, &to) == 2) {
			inside = from < end && start < to;
			count += inside;
		} else if (inside && flags && !strncmp(line, "VmFlags:", 8)) {
			snprintf(flags, room, "%s", line);
		}
	}
	fclose(file);
	return count;
}

static inline struct pf_extent extent_of(const void *memory, size_t bytes, bool huge)
{
	return (struct pf_extent){
		.start = (uintptr_t)memory,
		.pages = bytes / (huge ? HUGE : PAGE),
		.shift = huge ? 21 : 12,
		.kind = huge ? PF_PAGE_THP : PF_PAGE_BASE,
	};
}

/*
 * The bytes are meant to be copied while others have them, which the thread sanitizer would look
 * up a suppression for, word by word: where it can be had, a copy that it does not see.
 */
#if defined(__SANITIZE_THREAD__) && defined(__x86_64__)
enum { UNSEEN_COPY = PF_COPY_REP_MOVSB };
#else
enum { UNSEEN_COPY = PF_COPY_AUTO };
#endif

/* The struct of a call; left[] has room for MAX_LEFT. */
static inline struct pf_user user_call(int node, uint32_t way, uint32_t threads,
				       const struct pf_extent *extents, uint64_t n,
				       struct pf_extent *left)
{
	return (struct pf_user){
		.target = node,
		.way = way,
		.flags = PF_USER_AGAIN,
		.threads = threads,
		.extents = extents,
		.n_extents = n,
		.left = left,
		.max_left = MAX_LEFT,
		.copy_method = UNSEEN_COPY,
	};
}

static inline bool way_works(uint32_t way, bool huge)
{
	int64_t features = pf_user_features();
	uint32_t need = huge ? PF_USER_HAS_MOVE : 0;

	if (features < 0)
		return false;
	if (way == PF_USER_CHECKED)
		need |= PF_USER_HAS_MOVE | PF_USER_HAS_EVENTS;
	else
		need |= PF_USER_HAS_REMAP;
	if (way == PF_USER_PROTECT)
		need |= PF_USER_HAS_PROTECT;
	return (features & need) == need;
}

#endif
