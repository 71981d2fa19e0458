// SPDX-License-Identifier: Apache-2.0
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "calls.h"
#include "mt_calls.h"
#include "pages.h"

enum { FEWEST_EXTENTS = 512 };	/* room that a survey needs */

static void add(uint64_t *counter, uint64_t count)
{
	__atomic_fetch_add(counter, count, __ATOMIC_RELAXED);
}

void mt_count(struct pf_mt *mt, uint64_t begun_us, uint64_t pages, uint64_t bytes,
	      uint32_t workers)
{
	add(&mt->calls, 1);
	add(&mt->pages, pages);
	add(&mt->bytes, bytes);
	add(&mt->busy_us, now_us() - begun_us);
	if (workers > __atomic_load_n(&mt->workers, __ATOMIC_RELAXED))
		__atomic_store_n(&mt->workers, workers, __ATOMIC_RELAXED);
}

int64_t mt_passed(struct pf_mt *mt, int64_t result)
{
	add(&mt->passed, 1);
	return result;
}

bool may_move_all(void)
{
	return raw_move_pages(0, 0, NULL, NULL, NULL, MOVE_ALL) == 0;
}

bool read_mask(uint64_t *nodes, const uint64_t *mask, uint64_t maxnode)
{
	uint64_t bits = maxnode - 1;	/* so the kernel counts, 0 included */
	uint64_t words = (bits + 63) / 64;
	uint64_t chunk[PF_NODE_WORDS];
	uint64_t done, n, i;

	for (i = 0; i < PF_NODE_WORDS; i++)
		nodes[i] = 0;
	if (!bits || !mask)
		return true;
	if (bits > 4096 * 8)
		return false;
	for (done = 0; done < words; done += n) {
		n = words - done < PF_NODE_WORDS ? words - done : PF_NODE_WORDS;
		if (user_read(chunk, mask + done, n * sizeof(*chunk)))
			return false;
		if (done + n == words && bits % 64)
			chunk[n - 1] &= (1ull << bits % 64) - 1;
		for (i = 0; i < n; i++) {
			if (!done)
				nodes[i] = chunk[i];
			else if (chunk[i])
				return false;
		}
	}
	return true;
}

int32_t only_node(const uint64_t *nodes)
{
	int32_t node = -1;
	int32_t i;

	for (i = 0; i < PF_NODE_WORDS; i++) {
		if (!nodes[i])
			continue;
		if (node >= 0 || nodes[i] & (nodes[i] - 1))
			return -1;
		node = i * 64 + __builtin_ctzll(nodes[i]);
	}
	return node;
}

int open_proc(int32_t pid, const char *name)
{
	char path[48];

	if (pid)
		snprintf(path, sizeof(path), "/proc/%d/%s", pid, name);
	else
		snprintf(path, sizeof(path), "/proc/self/%s", name);
	return (int)raw_call(SYS_openat, AT_FDCWD, (long)path, O_RDONLY | O_CLOEXEC, 0, 0, 0);
}

/* The number of KiB behind a name in /proc/PID/status. */
static uint64_t kib_of(const char *text, const char *name)
{
	const char *at = strstr(text, name);

	return at ? strtoull(at + strlen(name), NULL, 10) : 0;
}

uint64_t mt_resident(int32_t pid)
{
	int fd = open_proc(pid, "status");
	char text[2048];
	long size;

	if (fd < 0)
		return 0;
	size = raw_call(SYS_read, fd, (long)text, sizeof(text) - 1, 0, 0, 0);
	raw_call(SYS_close, fd, 0, 0, 0, 0, 0);
	if (size <= 0)
		return 0;
	text[size] = '\0';
	return (kib_of(text, "\nVmRSS:") + kib_of(text, "\nHugetlbPages:")) << 10;
}

static uint32_t base_shift(void)
{
	return (uint32_t)__builtin_ctzl((unsigned long)sysconf(_SC_PAGESIZE));
}

struct pf_survey mt_survey(int32_t pid, int pagemap, uint64_t start, uint64_t end)
{
	uint32_t shift = base_shift();

	return (struct pf_survey){
		.start = start,
		.end = end,
		.pid = pid,
		.pagemap_fd = pagemap,
		.kpageflags_fd = -1,
		.method = PF_SURVEY_SCAN,
		.flags = PF_SURVEY_TOUCHED,
		.huge_shift = shift + shift - 3,	/* a page full of 8-byte entries */
		.huge_kind = PF_PAGE_THP,
	};
}

int64_t mt_survey_next(struct pf_survey *survey, struct pf_extent *extents, uint64_t max)
{
	int64_t count = pf_survey_next(survey, extents, max);

	if (count != -ENOTTY && count != -EINVAL)
		return count;
	survey->method = PF_SURVEY_PAGEMAP;	/* Linux before 6.7 */
	return pf_survey_next(survey, extents, max);
}

static bool block_is_huge(int pagemap, uint64_t start, uint64_t size)
{
	struct pf_survey survey = mt_survey(0, pagemap, start, start + size);
	struct pf_extent *extents = map_memory(FEWEST_EXTENTS * sizeof(*extents));
	bool huge = extents && pf_survey_next(&survey, extents, FEWEST_EXTENTS) == 1 &&
		    1ull << extents->shift == size;

	unmap_memory(extents, FEWEST_EXTENTS * sizeof(*extents));
	return huge;
}

uint64_t mt_bytes_at(struct mt_listing *listing, uint64_t address)
{
	uint32_t shift = base_shift();
	uint64_t size = 1ull << (shift + shift - 3);
	uint64_t block = address / size + 1;

	if (listing->pagemap < 0)
		return 1ull << shift;
	if (block != listing->block) {
		listing->block = block;
		listing->huge = block_is_huge(listing->pagemap, address & ~(size - 1), size);
		listing->counted = false;
	}
	if (!listing->huge)
		return 1ull << shift;
	if (listing->counted)
		return 0;
	listing->counted = true;
	return size;
}
