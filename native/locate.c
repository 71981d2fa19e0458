// SPDX-License-Identifier: Apache-2.0
/* Where pages are: the kernel asked by many threads, counted by node and size. */
#include <errno.h>
#include <stdlib.h>

#include "crew.h"
#include "pages.h"

enum { QUERY_BYTES = 32 << 20 };

struct locating {
	struct pf_locate *locate;
	struct cursor cursor;
	uint64_t capacity;	/* of a worker's batch */
	char *room;		/* for all of them */
};

static void add(uint64_t *counter, uint64_t count)
{
	__atomic_fetch_add(counter, count, __ATOMIC_RELAXED);
}

/* Keep every stride-th page of the batch; returns how many. */
static uint64_t thin_out(struct batch *batch, uint64_t stride)
{
	uint64_t from, to = 0;

	if (stride <= 1)
		return batch->count;
	for (from = 0; from < batch->count; from++) {
		if ((batch->index + from) % stride)
			continue;
		batch->address[to] = batch->address[from];
		batch->kind[to] = batch->kind[from];
		to++;
	}
	return to;
}

static void locate_batch(struct pf_locate *locate, struct batch *batch)
{
	uint64_t count = thin_out(batch, locate->stride);
	uint64_t i;
	int error;

	if (!count)
		return;
	error = query_nodes(locate->pid, count, batch->address, batch->status);
	if (error) {
		__atomic_store_n(&locate->error, -error, __ATOMIC_RELAXED);
		return;
	}
	for (i = 0; i < count; i++) {
		int32_t status = batch->status[i];

		if (status >= 0 && status < PF_MAX_NODES)
			add(&locate->pages[status][batch->kind[i]], 1);
		else if (status == -ENOENT || status == -EFAULT)
			add(&locate->pages_gone, 1);
		else
			add(&locate->pages_failed, 1);
		if (locate->statuses && locate->stride <= 1)
			locate->statuses[batch->index + i] = status;
	}
}

static void locate_work(void *arg, uint32_t worker)
{
	struct locating *locating = arg;
	struct pf_locate *locate = locating->locate;
	struct batch batch;

	batch_place(&batch, locating->room + worker * batch_room(locating->capacity),
		    locating->capacity);
	while (!__atomic_load_n(&locate->error, __ATOMIC_RELAXED) && crew_go_on() &&
	       cursor_claim(&locating->cursor, &batch, QUERY_BYTES))
		locate_batch(locate, &batch);
}

int pf_locate_run(struct pf_locate *locate)
{
	struct locating locating = { .locate = locate };
	int workers;

	if (!locate->threads || locate->threads > PF_MAX_THREADS)
		return -EINVAL;
	if (cursor_init(&locating.cursor, locate->extents, locate->n_extents, locate->threads))
		return -ENOBUFS;
	locating.capacity = batch_capacity(locating.cursor.pages, locate->threads);
	locating.room = malloc(batch_room(locating.capacity) * locate->threads);
	if (!locating.room) {
		cursor_destroy(&locating.cursor);
		return -ENOBUFS;
	}
	workers = pf_crew_run(locate->threads, locate->cpus, locate_work, &locating,
			      NULL, NULL, 0);
	free(locating.room);
	cursor_destroy(&locating.cursor);
	return workers < 0 ? workers : -locate->error;
}
