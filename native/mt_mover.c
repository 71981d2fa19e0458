// SPDX-License-Identifier: Apache-2.0
/*
 * Moving what is present in ranges: each worker claims parts of the address space
 * at a cursor until it has listed a piece, and moves that while the others list
 * and move theirs. No lock: whoever holds one may be a helper without a CPU. Pages
 * that will not move, or turn up meanwhile, are for the kernel, which has the last
 * word.
 */
#include "calls.h"
#include "crew.h"
#include "mt_calls.h"

enum {
	RANGES = 65536,		/* more than a process may have mappings by default */
	EXTENTS = 1024,		/* listed at a time */
	PAGES = 10240,		/* of a piece */
	SMALLEST_SHARE = 48,	/* of what is a worker's */
};

#define FIRST_PIECE (2ull << 20)	/* of a helper, which may come to a busy CPU */
#define LARGEST_PIECE (32ull << 20)	/* in base pages, less than PAGES by a huge one */
#define LONGEST_STEP (1ull << 40)
#define BLOCK_MASK ((1ull << BLOCK_SHIFT) - 1)

_Static_assert(LARGEST_PIECE + BLOCK_MASK < PAGES * 4096ull, "a piece of base pages has room");

/* What a worker needs for a piece. */
struct room {
	struct pf_extent extents[EXTENTS];
	uint64_t pages[PAGES];
	uint8_t shift[PAGES];
	int32_t nodes[PAGES];
	int32_t status[PAGES];
};

struct moving {
	struct mt_mover *mover;
	struct room *rooms;
	uint64_t next;		/* address from which on nothing is claimed */
	uint64_t bytes;		/* in all, as far as is known */
	uint64_t listed;	/* of them */
	uint64_t smallest;	/* piece */
	uint32_t stop;
};

static void add(uint64_t *counter, uint64_t count)
{
	__atomic_fetch_add(counter, count, __ATOMIC_RELAXED);
}

static void set(uint32_t *flag)
{
	__atomic_store_n(flag, 1, __ATOMIC_RELAXED);
}

static bool goes_on(const struct moving *moving)
{
	return !__atomic_load_n(&moving->stop, __ATOMIC_RELAXED) && crew_go_on();
}

/* The first range that ends behind an address, or n_ranges. */
static uint64_t range_at(const struct mt_mover *mover, uint64_t at)
{
	uint64_t low = 0, high = mover->n_ranges;

	while (low < high) {
		uint64_t middle = low + (high - low) / 2;

		if (mover->ranges[middle].end > at)
			high = middle;
		else
			low = middle + 1;
	}
	return low;
}

/*
 * From an address on, the next part of a range: so many bytes, or up to 2 MiB more,
 * as it does not end in the middle of a huge page, which would be listed twice.
 * False: there is none.
 */
static bool part_from(const struct mt_mover *mover, uint64_t at, uint64_t bytes,
		      struct mt_range *part)
{
	uint64_t i = range_at(mover, at);

	if (i == mover->n_ranges)
		return false;
	*part = mover->ranges[i];
	if (part->start < at)
		part->start = at;
	if (part->end - part->start > bytes + BLOCK_MASK)
		part->end = (part->start + bytes + BLOCK_MASK) & ~BLOCK_MASK;
	return true;
}

static bool claim_part(struct moving *moving, uint64_t bytes, struct mt_range *part)
{
	uint64_t at = __atomic_load_n(&moving->next, __ATOMIC_RELAXED);

	do {
		if (!part_from(moving->mover, at, bytes, part))
			return false;
	} while (!__atomic_compare_exchange_n(&moving->next, &at, part->end, true,
					      __ATOMIC_RELAXED, __ATOMIC_RELAXED));
	return true;
}

/*
 * A part had nothing in it: look ahead for the next page, further each time, as
 * mappings of terabytes are mostly empty. Where something is, it is left to be claimed.
 */
static void skip_empty(struct moving *moving, struct room *room, uint64_t step)
{
	struct mt_mover *mover = moving->mover;
	uint64_t at = __atomic_load_n(&moving->next, __ATOMIC_RELAXED);
	struct mt_range part;

	while (goes_on(moving) && part_from(mover, at, step, &part)) {
		struct pf_survey survey = mt_survey(mover->pid, mover->pagemap, part.start,
						    part.end);
		int64_t n = mt_survey_next(&survey, room->extents, EXTENTS);

		if (n < 0)	/* whoever claims it will see that, too */
			return;
		if (n && (room->extents[0].start & ~BLOCK_MASK) <= at)
			return;
		if (n)
			part.end = room->extents[0].start & ~BLOCK_MASK;
		if (!__atomic_compare_exchange_n(&moving->next, &at, part.end, false,
						 __ATOMIC_RELAXED, __ATOMIC_RELAXED) || n)
			return;
		at = part.end;
		if (step < LONGEST_STEP)
			step *= 2;
	}
}

/* Add the pages of a part to the piece; false: they cannot be listed. */
static bool list_part(const struct mt_mover *mover, struct room *room,
		      const struct mt_range *part, uint64_t *count, uint64_t *bytes)
{
	struct pf_survey survey = mt_survey(mover->pid, mover->pagemap, part->start, part->end);

	while (survey.start < survey.end) {
		int64_t n = mt_survey_next(&survey, room->extents, EXTENTS);
		int64_t i;

		if (n < 0)
			return false;
		for (i = 0; i < n; i++) {
			const struct pf_extent *extent = &room->extents[i];
			uint64_t page;

			if (extent->pages > PAGES - *count)
				return false;
			for (page = 0; page < extent->pages; page++) {
				room->shift[*count] = (uint8_t)extent->shift;
				room->pages[(*count)++] = extent->start + (page << extent->shift);
			}
			*bytes += extent->pages << extent->shift;
		}
	}
	return true;
}

/*
 * Every call drains the LRU caches of all CPUs and waits for that, so pieces are
 * large, and shrink towards the end, so that the workers finish together.
 */
static uint64_t next_size(const struct moving *moving, bool first)
{
	uint64_t listed = __atomic_load_n(&moving->listed, __ATOMIC_RELAXED);
	uint64_t piece = 0;

	if (listed < moving->bytes)
		piece = (moving->bytes - listed) / (2 * moving->mover->mt->threads);
	if (piece < moving->smallest)
		piece = moving->smallest;
	if (piece > LARGEST_PIECE)	/* of hundreds of gigabytes the smallest is more */
		piece = LARGEST_PIECE;
	return first ? FIRST_PIECE : piece & ~BLOCK_MASK;
}

/* Returns how many pages it has listed; 0: none are left, or they cannot be. */
static uint64_t list_piece(struct moving *moving, struct room *room, bool first)
{
	uint64_t piece = next_size(moving, first);
	uint64_t count = 0, bytes = 0;
	struct mt_range part;

	while (bytes < piece && goes_on(moving) && claim_part(moving, piece - bytes, &part)) {
		uint64_t before = count;

		if (!list_part(moving->mover, room, &part, &count, &bytes)) {
			set(&moving->mover->left);
			set(&moving->stop);
			break;
		}
		if (count == before)
			skip_empty(moving, room, 2 * piece);
	}
	add(&moving->listed, bytes);
	return count;
}

/* Keep the pages that are on one of the source nodes. */
static uint64_t on_sources(struct mt_mover *mover, struct room *room, uint64_t count)
{
	uint64_t kept = 0, i;

	if (raw_move_pages(mover->pid, count, room->pages, NULL, room->status, 0)) {
		set(&mover->left);
		return 0;
	}
	for (i = 0; i < count; i++) {
		int32_t node = room->status[i];

		if (node < 0 || node >= PF_MAX_NODES ||
		    !(mover->sources[node / 64] >> (node % 64) & 1))
			continue;
		room->shift[kept] = room->shift[i];
		room->pages[kept++] = room->pages[i];
	}
	return kept;
}

static void move_piece(struct moving *moving, struct room *room, uint64_t count)
{
	struct mt_mover *mover = moving->mover;
	uint64_t pages = 0, bytes = 0, i;
	long result;

	for (i = 0; i < count; i++) {
		room->nodes[i] = mover->target;
		room->status[i] = PF_STATUS_UNKNOWN;
	}
	result = raw_move_pages(mover->pid, count, room->pages, room->nodes, room->status,
				mover->shared ? MOVE_ALL : MOVE);
	for (i = 0; i < count; i++) {
		if (room->status[i] != mover->target)
			continue;
		pages++;
		bytes += 1ull << room->shift[i];
	}
	if (result > 0 && !pages && (uint64_t)result <= count) {
		/* One group: all were tried, and none has a status. */
		pages = count - (uint64_t)result;
		bytes = pages << room->shift[0];
	}
	add(&mover->pages, pages);
	add(&mover->bytes, bytes);
	if (result || pages < count)
		set(&mover->left);
	if (result < 0)
		set(&moving->stop);
}

static void move_work(void *arg, uint32_t worker)
{
	struct moving *moving = arg;
	struct room *room = &moving->rooms[worker];
	bool first = worker > 0;

	while (goes_on(moving)) {
		uint64_t count = list_piece(moving, room, first);

		first = false;
		if (!count)
			break;
		if (moving->mover->sources)
			count = on_sources(moving->mover, room, count);
		if (count)
			move_piece(moving, room, count);
	}
}

static void move_ranges(struct mt_mover *mover)
{
	struct moving moving = { .mover = mover };
	uint32_t threads = mover->mt->threads;
	uint64_t bytes = threads * sizeof(*moving.rooms);
	int workers;

	moving.bytes = mt_resident(mover->pid);
	if (!moving.bytes || moving.bytes > mover->bytes_mapped)
		moving.bytes = mover->bytes_mapped;
	moving.smallest = moving.bytes / ((uint64_t)threads * SMALLEST_SHARE);
	if (moving.smallest < FIRST_PIECE)
		moving.smallest = FIRST_PIECE;
	moving.rooms = map_memory(bytes);
	if (!moving.rooms) {
		mover->left = 1;
		return;
	}
	workers = pf_crew_run(threads, mover->mt->cpus, move_work, &moving, NULL, NULL, 0);
	if (workers > (int)mover->workers)
		mover->workers = (uint32_t)workers;
	if (workers < 0)
		mover->left = 1;
	unmap_memory(moving.rooms, bytes);
}

bool mt_mover_begin(struct mt_mover *mover, const struct pf_mt *mt, int32_t pid,
		    int32_t target, const uint64_t *sources, bool shared)
{
	mover->mt = mt;
	mover->pid = pid;
	mover->target = target;
	mover->sources = sources;
	mover->shared = shared;
	mover->pagemap = open_proc(pid, "pagemap");
	mover->ranges = map_memory(RANGES * sizeof(*mover->ranges));
	mover->n_ranges = 0;
	mover->bytes_mapped = 0;
	return mover->pagemap >= 0 && mover->ranges;
}

void mt_mover_add(struct mt_mover *mover, uint64_t start, uint64_t end)
{
	if (start == end)
		return;
	if (mover->n_ranges == RANGES) {
		mover->left = 1;
		return;
	}
	mover->ranges[mover->n_ranges++] = (struct mt_range){ .start = start, .end = end };
	mover->bytes_mapped += end - start;
}

void mt_mover_end(struct mt_mover *mover)
{
	if (mover->n_ranges)
		move_ranges(mover);
	if (mover->pagemap >= 0)
		raw_call(SYS_close, mover->pagemap, 0, 0, 0, 0, 0);
	unmap_memory(mover->ranges, RANGES * sizeof(*mover->ranges));
}
