// SPDX-License-Identifier: Apache-2.0
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <unistd.h>

#include "calls.h"
#include "mt_calls.h"
#include "pages.h"

enum {
	EXTENTS = 8192,		/* listed before a part of them is moved */
	CALL_US = 100000,	/* what one call of move_pages is to take */
	FEWEST_EXTENTS = 1024,	/* room that a survey needs: 512, by its fallback */
};

#define FIRST_BATCH (32ull << 20)

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
	uint64_t word, i;

	for (i = 0; i < PF_NODE_WORDS; i++)
		nodes[i] = 0;
	if (!bits || !mask)
		return true;
	if (bits > 4096 * 8)
		return false;
	for (i = 0; i < words; i++) {
		if (user_read(&word, mask + i, sizeof(word)))
			return false;
		if (i == words - 1 && bits % 64)
			word &= (1ull << bits % 64) - 1;
		if (i < PF_NODE_WORDS)
			nodes[i] = word;
		else if (word)
			return false;
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

static uint32_t base_shift(void)
{
	return (uint32_t)__builtin_ctzl((unsigned long)sysconf(_SC_PAGESIZE));
}

static struct pf_survey survey_of(int32_t pid, int pagemap, uint64_t start, uint64_t end)
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

static int64_t survey_next(struct pf_survey *survey, struct pf_extent *extents, uint64_t max)
{
	int64_t count = pf_survey_next(survey, extents, max);

	if (count != -ENOTTY && count != -EINVAL)
		return count;
	survey->method = PF_SURVEY_PAGEMAP;	/* Linux before 6.7 */
	return pf_survey_next(survey, extents, max);
}

bool mt_mover_begin(struct mt_mover *mover, const struct pf_mt *mt, int32_t pid,
		    int32_t target, const uint64_t *sources, bool shared)
{
	mover->pagemap = open_proc(pid, "pagemap");
	mover->extents = map_memory(EXTENTS * sizeof(*mover->extents));
	mover->error = 0;
	mover->count = 0;
	mover->move.pid = pid;
	mover->move.target = target;
	mover->move.flags = (shared ? PF_MOVE_SHARED : 0) | (sources ? PF_MOVE_EXACT : 0);
	mover->move.blocking = PF_ASYNC;
	mover->move.threads = mt->threads;
	mover->move.cpus = mt->cpus;
	mover->move.extents = mover->extents;
	mover->move.sources = sources;
	mover->move.batch_bytes = FIRST_BATCH;
	mover->move.batch_us = CALL_US;
	return mover->pagemap >= 0 && mover->extents;
}

static void move_listed(struct mt_mover *mover)
{
	mover->move.n_extents = mover->count;
	mover->count = 0;
	mover->error = pf_move_run(&mover->move);
}

void mt_mover_add(struct mt_mover *mover, uint64_t start, uint64_t end)
{
	struct pf_survey survey = survey_of(mover->move.pid, mover->pagemap, start, end);

	while (!mover->error && survey.start < survey.end) {
		int64_t count = survey_next(&survey, mover->extents + mover->count,
					    EXTENTS - mover->count);

		if (count < 0)
			mover->error = (int)count;
		else
			mover->count += (uint64_t)count;
		if (!mover->error && EXTENTS - mover->count < FEWEST_EXTENTS)
			move_listed(mover);
	}
}

void mt_mover_end(struct mt_mover *mover)
{
	if (!mover->error && mover->count)
		move_listed(mover);
	if (mover->pagemap >= 0)
		raw_call(SYS_close, mover->pagemap, 0, 0, 0, 0, 0);
	unmap_memory(mover->extents, EXTENTS * sizeof(*mover->extents));
}

void mt_mover_count(struct pf_mt *mt, const struct mt_mover *mover, uint64_t begun_us)
{
	const struct pf_progress *progress = &mover->move.progress;
	uint64_t pages = 0;
	int kind;

	for (kind = 0; kind < PF_PAGE_KINDS; kind++)
		pages += progress->pages_moved[kind];
	mt_count(mt, begun_us, pages, progress->bytes_moved, mover->move.workers);
}

static bool block_is_huge(int pagemap, uint64_t start, uint64_t size)
{
	struct pf_survey survey = survey_of(0, pagemap, start, start + size);
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
