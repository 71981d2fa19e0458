// SPDX-License-Identifier: Apache-2.0
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "calls.h"
#include "pages.h"

/*
 * Batches shrink towards the end, so that the workers finish together, but not
 * below a share of the whole: each call drains a list on every CPU and waits
 * for all of them, 0.1 ms when these are idle and milliseconds when not,
 * whatever the call then moves. Who knows what a call costs sets more
 * (smallest_bytes of struct pf_move).
 */
#define SMALLEST_BYTES (2u << 20)
enum { SMALLEST_SHARE = 48 };

uint64_t batch_capacity(uint64_t pages, uint32_t workers)
{
	uint64_t most = BATCH_BYTES_ALL / BATCH_BYTES_PAGE / workers;

	if (most > BATCH_PAGES_MAX)
		most = BATCH_PAGES_MAX;
	if (most < BATCH_PAGES_MIN)
		most = BATCH_PAGES_MIN;
	return pages < most ? pages : most;
}

uint64_t extents_pages(const struct pf_extent *extents, uint64_t n_extents)
{
	uint64_t pages = 0;
	uint64_t i;

	for (i = 0; i < n_extents; i++)
		pages += extents[i].pages;
	return pages;
}

int cursor_init(struct cursor *cursor, const struct pf_extent *extents,
		uint64_t n_extents, uint32_t workers)
{
	uint64_t i;

	memset(cursor, 0, sizeof(*cursor));
	cursor->extents = extents;
	cursor->n_extents = n_extents;
	cursor->workers = workers;
	cursor->pages_before = cursor->small;
	if (n_extents > 1)
		cursor->pages_before = malloc(2 * n_extents * sizeof(*cursor->pages_before));
	if (!cursor->pages_before)
		return -ENOMEM;
	cursor->bytes_before = cursor->pages_before + (n_extents ? n_extents : 1);
	for (i = 0; i < n_extents; i++) {
		cursor->pages_before[i] = cursor->pages;
		cursor->bytes_before[i] = cursor->bytes;
		cursor->pages += extents[i].pages;
		cursor->bytes += extents[i].pages << extents[i].shift;
	}
	cursor->smallest = cursor->bytes / (SMALLEST_SHARE * (uint64_t)workers);
	if (cursor->smallest < SMALLEST_BYTES)
		cursor->smallest = SMALLEST_BYTES;
	return 0;
}

void cursor_destroy(struct cursor *cursor)
{
	if (cursor->pages_before != cursor->small)
		free(cursor->pages_before);
}

/* The last extent that begins at or before this page; not an empty one. */
uint64_t cursor_extent(const struct cursor *cursor, uint64_t page)
{
	uint64_t low = 0, high = cursor->n_extents;

	while (high - low > 1) {
		uint64_t middle = low + (high - low) / 2;

		if (cursor->pages_before[middle] <= page)
			low = middle;
		else
			high = middle;
	}
	return low;
}

uint64_t cursor_bytes_from(const struct cursor *cursor, uint64_t at)
{
	uint64_t extent;

	if (at >= cursor->pages)
		return 0;
	extent = cursor_extent(cursor, at);
	return cursor->bytes - cursor->bytes_before[extent] -
	       ((at - cursor->pages_before[extent]) << cursor->extents[extent].shift);
}

uint64_t cursor_left(const struct cursor *cursor)
{
	return cursor_bytes_from(cursor, __atomic_load_n(&cursor->next, __ATOMIC_RELAXED));
}

void cursor_share(struct cursor *cursor, uint32_t workers)
{
	__atomic_store_n(&cursor->workers, workers, __ATOMIC_RELAXED);
}

/* How many pages of one extent go into a batch that has room bytes left. */
static uint64_t take_from(const struct pf_extent *extent, uint64_t page, uint64_t room,
			  uint64_t most)
{
	uint64_t take = room >> extent->shift;
	uint64_t left = extent->pages - page;
	uint64_t end, huge;

	if (take >= left)
		take = left;
	if (take > most)
		take = most;
	/*
	 * Cut base pages where a page table ends (512 entries): two workers
	 * on one table would wait for each other's lock.
	 */
	if (take < left && take > 2 * 512) {
		huge = (uint64_t)512 << extent->shift;
		end = extent->start + ((page + take) << extent->shift);
		take -= (end % huge) >> extent->shift;
	}
	return take;
}

/* Bytes for the next batch, of which left are to be dealt out. */
static uint64_t fair_bytes(const struct cursor *cursor, uint64_t left, uint64_t limit)
{
	uint32_t workers = __atomic_load_n(&cursor->workers, __ATOMIC_RELAXED);
	uint64_t want = limit;
	uint64_t share;

	if (workers <= 1)
		return want;
	share = left / (2 * (uint64_t)workers);
	if (want > share)
		want = share;
	if (want < cursor->smallest)
		want = cursor->smallest;
	return want < limit ? want : limit;	/* what fits into the time that a call may take */
}

/* How many pages from this one on are the next batch: at least one. */
static uint64_t batch_pages(const struct cursor *cursor, uint64_t at, uint64_t want, uint64_t most)
{
	uint64_t extent = cursor_extent(cursor, at);
	uint64_t page = at - cursor->pages_before[extent];
	uint64_t count = 0, bytes = 0;

	for (; extent < cursor->n_extents && count < most; extent++, page = 0) {
		const struct pf_extent *from = &cursor->extents[extent];
		uint64_t room = want > bytes ? want - bytes : 0;
		uint64_t take = take_from(from, page, room, most - count);

		if (!take && !count && from->pages)
			take = 1;
		count += take;
		bytes += take << from->shift;
		if (page + take < from->pages)
			break;
	}
	return count;
}

static void fill(struct batch *batch, const struct cursor *cursor, uint64_t at, uint64_t count)
{
	uint64_t extent = cursor_extent(cursor, at);
	uint64_t page = at - cursor->pages_before[extent];

	batch->index = at;
	batch->count = 0;
	batch->bytes = 0;
	for (; batch->count < count; extent++, page = 0) {
		const struct pf_extent *from = &cursor->extents[extent];

		for (; page < from->pages && batch->count < count; page++) {
			batch->address[batch->count] = from->start + (page << from->shift);
			batch->shift[batch->count] = (uint8_t)from->shift;
			batch->kind[batch->count] = (uint8_t)from->kind;
			batch->bytes += 1ull << from->shift;
			batch->count++;
		}
	}
}

bool cursor_claim(struct cursor *cursor, struct batch *batch, uint64_t limit)
{
	uint64_t at = __atomic_load_n(&cursor->next, __ATOMIC_RELAXED);
	uint64_t count, want;

	do {
		if (at >= cursor->pages)
			return false;
		want = fair_bytes(cursor, cursor_bytes_from(cursor, at), limit);
		count = batch_pages(cursor, at, want, batch->capacity);
	} while (!__atomic_compare_exchange_n(&cursor->next, &at, at + count, false,
					      __ATOMIC_RELAXED, __ATOMIC_RELAXED));
	fill(batch, cursor, at, count);
	return true;
}

uint64_t cursor_drain(struct cursor *cursor, uint64_t *pages, uint64_t *bytes)
{
	uint64_t at = __atomic_exchange_n(&cursor->next, cursor->pages, __ATOMIC_RELAXED);

	*pages = cursor->pages - at;
	*bytes = cursor_bytes_from(cursor, at);
	return at;
}

size_t batch_room(uint64_t capacity)
{
	struct batch *batch = NULL;
	size_t page = sizeof(*batch->address) + sizeof(*batch->status) +
		      sizeof(*batch->shift) + sizeof(*batch->kind);

	return (capacity * page + 63) & ~(size_t)63;
}

void batch_place(struct batch *batch, void *room, uint64_t capacity)
{
	memset(batch, 0, sizeof(*batch));
	batch->capacity = capacity;
	batch->address = room;
	batch->status = (int32_t *)(batch->address + capacity);
	batch->shift = (uint8_t *)(batch->status + capacity);
	batch->kind = batch->shift + capacity;
}

uint32_t batch_shift(const struct batch *batch)
{
	uint64_t bytes[64] = { 0 };
	uint64_t i;

	for (i = 0; i < batch->count; i++)
		bytes[batch->shift[i] & 63] += 1ull << batch->shift[i];
	for (i = 0; i < 64; i++)
		if (bytes[i] > batch->bytes - batch->bytes / 32)
			return (uint32_t)i;
	return 0;
}

long sys_move_pages(int32_t pid, uint64_t count, const uint64_t *pages,
		    const int32_t *nodes, int32_t *status, int flags)
{
	long result = raw_move_pages(pid, count, pages, nodes, status, flags);

	/* What is left of a process that ended until its parent asks has no memory. */
	return pid && result == -EINVAL ? -ESRCH : result;
}

int query_nodes(int32_t pid, uint64_t count, const uint64_t *pages, int32_t *status)
{
	uint64_t i;
	long result;

	for (i = 0; i < count; i++)
		status[i] = PF_STATUS_UNKNOWN;
	do {
		result = sys_move_pages(pid, count, pages, NULL, status, 0);
	} while (result == -EINTR);
	return result < 0 ? (int)result : 0;
}

uint64_t now_us(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return (uint64_t)now.tv_sec * 1000000 + (uint64_t)now.tv_nsec / 1000;
}
