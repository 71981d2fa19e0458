// SPDX-License-Identifier: Apache-2.0
/*
 * Survey: which pages of a range are present, and of what size. Three ways to
 * know, the best first:
 *  - PAGEMAP_SCAN (Linux 6.7): runs of pages with their categories, in one call;
 *  - /proc/PID/pagemap: a word for each base page. Whether a block is one huge
 *    page shows only with frame numbers and /proc/kpageflags, for root; others
 *    get base pages, which is slower but right;
 *  - move_pages(2) without nodes, where there is no /proc.
 */
#include <errno.h>
#include <stdbool.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include "pages.h"

/* From linux/fs.h of 6.7; the headers we build against may be older. */
struct scan_region {
	uint64_t start;
	uint64_t end;
	uint64_t categories;
};

struct scan_arg {
	uint64_t size;
	uint64_t flags;
	uint64_t start;
	uint64_t end;
	uint64_t walk_end;
	uint64_t vec;
	uint64_t vec_len;
	uint64_t max_pages;
	uint64_t category_inverted;
	uint64_t category_mask;
	uint64_t category_anyof_mask;
	uint64_t return_mask;
};

#define PAGEMAP_SCAN_IOCTL _IOWR('f', 16, struct scan_arg)

enum {
	IS_PRESENT = 1 << 3,
	IS_SWAPPED = 1 << 4,
	IS_ZERO = 1 << 5,
	IS_HUGE = 1 << 6,

	SCAN_REGIONS = 512,
	BLOCK_SHIFT = 9,
	BLOCK_PAGES = 1 << BLOCK_SHIFT,	/* looked at together by the other two ways */

	KPF_COMPOUND_HEAD = 15,
	KPF_THP = 22,
	KPF_ZERO_PAGE = 24,
};

#define ENTRY_PRESENT (1ull << 63)
#define ENTRY_SWAPPED (1ull << 62)
#define ENTRY_FRAME ((1ull << 55) - 1)

struct output {
	struct pf_extent *extents;
	uint64_t max;
	uint64_t count;
};

static uint32_t base_shift(void)
{
	return (uint32_t)__builtin_ctzl((unsigned long)sysconf(_SC_PAGESIZE));
}

static void emit(struct output *output, uint64_t start, uint64_t end, uint32_t shift,
		 uint32_t kind)
{
	struct pf_extent *last = output->count ? &output->extents[output->count - 1] : NULL;

	if (start >= end)
		return;
	if (last && last->shift == shift && last->kind == kind &&
	    last->start + (last->pages << shift) == start) {
		last->pages += (end - start) >> shift;
		return;
	}
	output->extents[output->count++] = (struct pf_extent){
		.start = start, .pages = (end - start) >> shift, .shift = shift, .kind = kind,
	};
}

/* Huge pages from start to end, of which an end of the range may cut off a part. */
static void emit_huge(struct pf_survey *survey, struct output *output, uint64_t start,
		      uint64_t end)
{
	uint64_t size = 1ull << survey->huge_shift;
	uint64_t whole_start = start & ~(size - 1);
	uint64_t whole_end = (end + size - 1) & ~(size - 1);

	if (!(survey->flags & PF_SURVEY_TOUCHED)) {
		whole_start = (start + size - 1) & ~(size - 1);
		whole_end = end & ~(size - 1);
		if (whole_start > whole_end)
			whole_start = whole_end = start;
		survey->bytes_cut += (end - start) - (whole_end - whole_start);
	}
	survey->bytes_present += whole_end - whole_start;
	emit(output, whole_start, whole_end, survey->huge_shift, survey->huge_kind);
}

static void take_region(struct pf_survey *survey, struct output *output,
			const struct scan_region *region)
{
	uint64_t bytes = region->end - region->start;

	if (!(region->categories & IS_PRESENT)) {
		survey->bytes_swapped += bytes;
	} else if (region->categories & IS_ZERO) {
		survey->bytes_zero += bytes;
	} else if ((region->categories & IS_HUGE) && survey->huge_shift) {
		emit_huge(survey, output, region->start, region->end);
	} else {
		survey->bytes_present += bytes;
		emit(output, region->start, region->end, base_shift(), PF_PAGE_BASE);
	}
}

static int survey_scan(struct pf_survey *survey, struct output *output)
{
	struct scan_region regions[SCAN_REGIONS];

	while (survey->start < survey->end && output->count < output->max) {
		uint64_t room = output->max - output->count;
		struct scan_arg arg = {
			.size = sizeof(arg),
			.start = survey->start,
			.end = survey->end,
			.vec = (uintptr_t)regions,
			.vec_len = room < SCAN_REGIONS ? room : SCAN_REGIONS,
			.category_anyof_mask = IS_PRESENT | IS_SWAPPED,
			.return_mask = IS_PRESENT | IS_SWAPPED | IS_ZERO | IS_HUGE,
		};
		int count = ioctl(survey->pagemap_fd, PAGEMAP_SCAN_IOCTL, &arg);
		int i;

		if (count < 0 && errno == EINTR)
			continue;
		if (count < 0)
			return -errno;
		for (i = 0; i < count; i++)
			take_region(survey, output, &regions[i]);
		if (arg.walk_end <= survey->start)
			return -EIO;
		survey->start = arg.walk_end;
	}
	return 0;
}

/* ---- The two ways that look at each base page -------------------------------- */

/* The pages of one block: the IS_ categories of each, and the first frame. */
struct block {
	uint64_t start;
	uint64_t pages;
	uint64_t frame;		/* 0: not known */
	bool contiguous;
	uint8_t categories[BLOCK_PAGES];
};

static int look_pagemap(struct pf_survey *survey, struct block *block)
{
	uint64_t entries[BLOCK_PAGES];
	uint32_t shift = base_shift();
	ssize_t got;
	uint64_t i;

	got = pread(survey->pagemap_fd, entries, block->pages * 8,
		    (off_t)(block->start >> shift) * 8);
	if (got < 0)
		return -errno;
	/* Nothing is read of a process that has gone, or beyond the address space. */
	memset((char *)entries + got, 0, block->pages * 8 - (size_t)got);
	block->frame = entries[0] & ENTRY_PRESENT ? entries[0] & ENTRY_FRAME : 0;
	block->contiguous = block->frame != 0;
	for (i = 0; i < block->pages; i++) {
		block->categories[i] = (entries[i] & ENTRY_PRESENT ? IS_PRESENT : 0) |
				       (entries[i] & ENTRY_SWAPPED ? IS_SWAPPED : 0);
		if ((entries[i] & ENTRY_FRAME) != block->frame + i)
			block->contiguous = false;
	}
	return 0;
}

static int look_query(const struct pf_survey *survey, struct block *block)
{
	uint64_t addresses[BLOCK_PAGES];
	int32_t statuses[BLOCK_PAGES];
	uint64_t i;
	int error;

	for (i = 0; i < block->pages; i++)
		addresses[i] = block->start + (i << base_shift());
	error = query_nodes(survey->pid, block->pages, addresses, statuses);
	if (error)
		return error;
	block->frame = 0;
	block->contiguous = false;
	for (i = 0; i < block->pages; i++)
		block->categories[i] = statuses[i] >= 0 ? IS_PRESENT : 0;
	return 0;
}

/*
 * What pagemap shows as present may be the shared zero page, which smaps does
 * not count. The kernel names no node for it.
 */
static bool has_zero_page(const struct pf_survey *survey, const struct block *block)
{
	struct block asked = { .start = block->start, .pages = block->pages };
	uint64_t i;

	if (look_query(survey, &asked))
		return true;
	for (i = 0; i < asked.pages; i++)
		if (!(asked.categories[i] & IS_PRESENT))
			return true;
	return false;
}

static bool block_is_huge(const struct pf_survey *survey, const struct block *block)
{
	uint64_t flags, i;

	if (survey->huge_kind == PF_PAGE_HUGETLB)
		return block->categories[0] & IS_PRESENT;
	if (block->pages << base_shift() != 1ull << survey->huge_shift)
		return false;
	if (survey->flags & PF_SURVEY_DENSE) {
		for (i = 0; i < block->pages; i++)
			if (!(block->categories[i] & IS_PRESENT))
				return false;
		return !has_zero_page(survey, block);
	}
	if (!block->contiguous || block->frame % block->pages || survey->kpageflags_fd < 0)
		return false;
	if (pread(survey->kpageflags_fd, &flags, 8, (off_t)block->frame * 8) != 8)
		return false;
	return (flags >> KPF_THP & 1) && (flags >> KPF_COMPOUND_HEAD & 1) &&
	       !(flags >> KPF_ZERO_PAGE & 1);
}

static void take_block(struct pf_survey *survey, struct output *output,
		       const struct block *block, uint64_t end)
{
	uint32_t shift = base_shift();
	uint64_t i;

	for (i = 0; i < block->pages; i++) {
		uint64_t at = block->start + (i << shift);

		if (at < survey->start || at >= end)
			continue;
		if (block->categories[i] & IS_PRESENT) {
			survey->bytes_present += 1ull << shift;
			emit(output, at, at + (1ull << shift), shift, PF_PAGE_BASE);
		} else if (block->categories[i] & IS_SWAPPED) {
			survey->bytes_swapped += 1ull << shift;
		}
	}
}

static int survey_blocks(struct pf_survey *survey, struct output *output)
{
	uint32_t shift = base_shift();
	bool hugetlb = survey->huge_kind == PF_PAGE_HUGETLB;
	uint64_t size = 1ull << (hugetlb ? survey->huge_shift : shift + BLOCK_SHIFT);
	struct block block = { .pages = hugetlb ? 1 : BLOCK_PAGES };

	while (survey->start < survey->end && output->count + BLOCK_PAGES <= output->max) {
		uint64_t end;
		int error;

		/* A hugetlb page is told by its first base page. */
		block.start = survey->start & ~(size - 1);
		end = block.start + size;
		if (end > survey->end)
			end = survey->end;
		error = survey->method == PF_SURVEY_QUERY ? look_query(survey, &block)
							  : look_pagemap(survey, &block);
		if (error)
			return error;
		if (block_is_huge(survey, &block))
			emit_huge(survey, output, survey->start, end);
		else if (!hugetlb)
			take_block(survey, output, &block, end);
		survey->start = end;
	}
	return 0;
}

int64_t pf_survey_next(struct pf_survey *survey, struct pf_extent *extents, uint64_t max)
{
	struct output output = { .extents = extents, .max = max };
	uint64_t mask = (1ull << base_shift()) - 1;
	int error;

	if (max < BLOCK_PAGES || survey->start & mask || survey->end & mask ||
	    survey->huge_shift > 40 || survey->huge_kind >= PF_PAGE_KINDS ||
	    (survey->huge_kind == PF_PAGE_HUGETLB && !survey->huge_shift))
		return -EINVAL;
	if (survey->method == PF_SURVEY_SCAN)
		error = survey_scan(survey, &output);
	else if (survey->method == PF_SURVEY_PAGEMAP || survey->method == PF_SURVEY_QUERY)
		error = survey_blocks(survey, &output);
	else
		return -EINVAL;
	return error ? error : (int64_t)output.count;
}
