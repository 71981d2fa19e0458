// SPDX-License-Identifier: Apache-2.0
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "pages.h"

/*
 * Batches shrink towards the end, so that the workers finish together, but not
 * below a share of the whole: each call drains a list on every CPU and waits
 * for all of them, 0.1 ms when these are idle and milliseconds when not,
 * whatever the call then moves.
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

void cursor_init(struct cursor *cursor, const struct pf_extent *extents,
		 uint64_t n_extents, uint32_t workers)
{
	uint64_t i;

	memset(cursor, 0, sizeof(*cursor));
	pthread_mutex_init(&cursor->lock, NULL);
	cursor->extents = extents;
	cursor->n_extents = n_extents;
	cursor->workers = workers;
	for (i = 0; i < n_extents; i++)
		cursor->bytes_left += extents[i].pages << extents[i].shift;
	cursor->smallest = cursor->bytes_left / (SMALLEST_SHARE * (uint64_t)workers);
	if (cursor->smallest < SMALLEST_BYTES)
		cursor->smallest = SMALLEST_BYTES;
}

void cursor_destroy(struct cursor *cursor)
{
	pthread_mutex_destroy(&cursor->lock);
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

bool cursor_claim(struct cursor *cursor, struct batch *batch, uint64_t want)
{
	uint64_t limit = want;
	uint64_t share;

	batch->count = 0;
	batch->bytes = 0;
	pthread_mutex_lock(&cursor->lock);
	if (cursor->workers > 1) {
		share = cursor->bytes_left / (2 * (uint64_t)cursor->workers);
		if (want > share)
			want = share;
		if (want < cursor->smallest)
			want = cursor->smallest;
		if (want > limit)
			want = limit;	/* what fits into the time that a call may take */
	}
	batch->index = cursor->index;
	while (cursor->extent < cursor->n_extents && batch->count < batch->capacity) {
		const struct pf_extent *extent = &cursor->extents[cursor->extent];
		uint64_t room = want > batch->bytes ? want - batch->bytes : 0;
		uint64_t take = take_from(extent, cursor->page, room,
					  batch->capacity - batch->count);
		uint64_t first = extent->start + (cursor->page << extent->shift);
		uint64_t i;

		if (!take && !batch->count && extent->pages)
			take = 1;
		for (i = 0; i < take; i++) {
			batch->address[batch->count] = first + (i << extent->shift);
			batch->shift[batch->count] = (uint8_t)extent->shift;
			batch->kind[batch->count] = (uint8_t)extent->kind;
			batch->count++;
		}
		batch->bytes += take << extent->shift;
		cursor->page += take;
		if (cursor->page < extent->pages)
			break;
		cursor->extent++;
		cursor->page = 0;
	}
	cursor->index += batch->count;
	cursor->bytes_left -= batch->bytes;
	pthread_mutex_unlock(&cursor->lock);
	return batch->count > 0;
}

void cursor_drain(struct cursor *cursor, uint64_t *pages, uint64_t *bytes)
{
	uint64_t total = extents_pages(cursor->extents, cursor->n_extents);

	pthread_mutex_lock(&cursor->lock);
	*pages = total - cursor->index;
	*bytes = cursor->bytes_left;
	cursor->index = total;
	cursor->bytes_left = 0;
	cursor->extent = cursor->n_extents;
	pthread_mutex_unlock(&cursor->lock);
}

int batch_alloc(struct batch *batch, uint64_t capacity)
{
	memset(batch, 0, sizeof(*batch));
	batch->capacity = capacity;
	batch->address = malloc(capacity * sizeof(*batch->address));
	batch->status = malloc(capacity * sizeof(*batch->status));
	batch->shift = malloc(capacity);
	batch->kind = malloc(capacity);
	if (!batch->address || !batch->status || !batch->shift || !batch->kind) {
		batch_free(batch);
		return -ENOMEM;
	}
	return 0;
}

void batch_free(struct batch *batch)
{
	free(batch->address);
	free(batch->status);
	free(batch->shift);
	free(batch->kind);
	memset(batch, 0, sizeof(*batch));
}

static long raw_move_pages(int32_t pid, uint64_t count, const uint64_t *pages,
			   const int32_t *nodes, int32_t *status, int flags)
{
	long result = syscall(SYS_move_pages, (long)pid, (unsigned long)count, pages, nodes,
			      status, (long)flags);

	return result < 0 ? -errno : result;
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

int64_t pf_sys_move_pages(int32_t pid, uint64_t count, const uint64_t *pages,
			  const int32_t *nodes, int32_t *status, int32_t flags)
{
	return raw_move_pages(pid, count, pages, nodes, status, flags);
}

uint64_t now_us(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return (uint64_t)now.tv_sec * 1000000 + (uint64_t)now.tv_nsec / 1000;
}
