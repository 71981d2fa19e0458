// SPDX-License-Identifier: Apache-2.0
/*
 * Moving what is present in ranges: each worker lists a piece, under a lock, and
 * moves it while the others list and move theirs. Pages that will not move, or
 * turn up meanwhile, are for the kernel, which has the last word.
 */
#include <pthread.h>

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
	pthread_mutex_t lock;
	uint64_t range;		/* from here to step: under the lock */
	uint64_t at;		/* in the range */
	uint64_t step;		/* of address space, longer where nothing is present */
	uint64_t bytes;		/* not yet listed, as far as is known */
	uint64_t smallest;	/* piece */
	uint32_t stop;
};

/* The next part of the address space to be looked through; false: none is left. */
static bool next_part(struct moving *moving, struct mt_range *part)
{
	const struct mt_mover *mover = moving->mover;
	const struct mt_range *range = &mover->ranges[moving->range];

	while (moving->range < mover->n_ranges && moving->at == range->end) {
		range++;
		moving->range++;
		moving->at = range->start;	/* behind the last one there is a zero */
	}
	if (moving->range == mover->n_ranges)
		return false;
	part->start = moving->at;
	part->end = range->end;
	/* Not in the middle of a huge page, which would be listed twice. */
	if (range->end - part->start > moving->step)
		part->end = (part->start + moving->step) & ~BLOCK_MASK;
	moving->at = part->end;
	return true;
}

/*
 * Take pages of an extent until the piece is full, which it is at a multiple of
 * 2 MiB only: then no folio is in two pieces. Returns where the rest begins, or 0.
 */
static uint64_t take(struct room *room, const struct pf_extent *extent, uint64_t piece,
		     uint64_t *count, uint64_t *bytes)
{
	uint64_t at = extent->start;
	uint64_t i;

	for (i = 0; i < extent->pages; i++, at += 1ull << extent->shift) {
		if (*count == PAGES || (*bytes >= piece && !(at & BLOCK_MASK)))
			return at;
		room->shift[*count] = (uint8_t)extent->shift;
		room->pages[(*count)++] = at;
		*bytes += 1ull << extent->shift;
	}
	return 0;
}

/* List the pages of a part; true: the piece is full. */
static bool list_part(struct moving *moving, struct room *room, const struct mt_range *part,
		      uint64_t piece, uint64_t *count, uint64_t *bytes)
{
	struct mt_mover *mover = moving->mover;
	struct pf_survey survey = mt_survey(mover->pid, mover->pagemap, part->start, part->end);

	while (survey.start < survey.end) {
		int64_t n = mt_survey_next(&survey, room->extents, EXTENTS);
		int64_t i;

		if (n < 0) {
			__atomic_store_n(&mover->left, 1, __ATOMIC_RELAXED);
			return false;
		}
		for (i = 0; i < n; i++) {
			uint64_t rest = take(room, &room->extents[i], piece, count, bytes);

			if (rest) {
				moving->at = rest;
				return true;
			}
		}
	}
	return *bytes >= piece;
}

/*
 * Every call drains the LRU caches of all CPUs and waits for that, so pieces are
 * large, and shrink towards the end, so that the workers finish together.
 */
static uint64_t next_size(const struct moving *moving, bool first)
{
	uint64_t piece = moving->bytes / (2 * moving->mover->mt->threads);

	if (piece > LARGEST_PIECE)
		piece = LARGEST_PIECE;
	if (piece < moving->smallest)
		piece = moving->smallest;
	return first ? FIRST_PIECE : piece & ~BLOCK_MASK;
}

/* Returns how many pages it has listed; 0: none are left. */
static uint64_t list_piece(struct moving *moving, struct room *room, bool first)
{
	uint64_t piece = next_size(moving, first);
	uint64_t count = 0, bytes = 0;
	struct mt_range part;
	bool full = false;

	moving->step = piece;
	while (!full && next_part(moving, &part)) {
		uint64_t before = count;

		full = list_part(moving, room, &part, piece, &count, &bytes);
		if (count > before)
			moving->step = piece;
		else if (moving->step < LONGEST_STEP)
			moving->step *= 2;
	}
	moving->bytes -= bytes < moving->bytes ? bytes : moving->bytes;
	return count;
}

/* Keep the pages that are on one of the source nodes. */
static uint64_t on_sources(struct mt_mover *mover, struct room *room, uint64_t count)
{
	uint64_t kept = 0, i;

	if (raw_move_pages(mover->pid, count, room->pages, NULL, room->status, 0)) {
		__atomic_store_n(&mover->left, 1, __ATOMIC_RELAXED);
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
	__atomic_fetch_add(&mover->pages, pages, __ATOMIC_RELAXED);
	__atomic_fetch_add(&mover->bytes, bytes, __ATOMIC_RELAXED);
	if (result || pages < count)
		__atomic_store_n(&mover->left, 1, __ATOMIC_RELAXED);
	if (result < 0)
		__atomic_store_n(&moving->stop, 1, __ATOMIC_RELAXED);
}

static void move_work(void *arg, uint32_t worker)
{
	struct moving *moving = arg;
	struct room *room = &moving->rooms[worker];
	bool first = worker > 0;

	while (!__atomic_load_n(&moving->stop, __ATOMIC_RELAXED) && crew_go_on()) {
		uint64_t count;

		pthread_mutex_lock(&moving->lock);
		count = list_piece(moving, room, first);
		pthread_mutex_unlock(&moving->lock);
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
	struct moving moving = { .mover = mover, .lock = PTHREAD_MUTEX_INITIALIZER };
	uint32_t threads = mover->mt->threads;
	uint64_t bytes = threads * sizeof(*moving.rooms);
	int workers;

	moving.bytes = mt_resident(mover->pid);
	if (!moving.bytes || moving.bytes > mover->bytes_mapped)
		moving.bytes = mover->bytes_mapped;
	moving.smallest = moving.bytes / ((uint64_t)threads * SMALLEST_SHARE);
	if (moving.smallest < FIRST_PIECE)
		moving.smallest = FIRST_PIECE;
	moving.at = mover->ranges[0].start;
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
	pthread_mutex_destroy(&moving.lock);
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
	if (mover->n_ranges == RANGES - 1) {
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
