// SPDX-License-Identifier: Apache-2.0
/* The kernel engine's workers, and the run that they make together. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "crew.h"
#include "kernel_engine.h"

static size_t pending_room(uint64_t capacity)
{
	struct pending *pending = NULL;
	size_t page = sizeof(*pending->address) + sizeof(*pending->asked) +
		      sizeof(*pending->slot) + sizeof(*pending->node) + sizeof(*pending->status) +
		      sizeof(*pending->busy) + sizeof(*pending->torn);

	return (capacity * page + 63) & ~(size_t)63;
}

static void pending_place(struct pending *pending, void *room, uint64_t capacity)
{
	pending->count = 0;
	pending->address = room;
	pending->asked = pending->address + capacity;
	pending->slot = (uint32_t *)(pending->asked + capacity);
	pending->node = (int32_t *)(pending->slot + capacity);
	pending->status = pending->node + capacity;
	pending->busy = (uint8_t *)(pending->status + capacity);
	pending->torn = pending->busy + capacity;
}

static size_t worker_room(uint64_t capacity)
{
	return batch_room(capacity) + pending_room(capacity);
}

static void skip_batch(struct moving *moving, const struct batch *batch)
{
	uint64_t i;

	for (i = 0; i < batch->count; i++)
		count_skipped(moving, batch, i);
}

static void move_work(void *arg, uint32_t worker)
{
	struct moving *moving = arg;
	struct pf_move *move = moving->move;
	char *room = moving->room + worker * worker_room(moving->capacity);
	struct pending pending;
	struct batch batch;

	batch_place(&batch, room, moving->capacity);
	pending_place(&pending, room + batch_room(moving->capacity), moving->capacity);
	while (!move_stopped(move)) {
		uint64_t bytes = __atomic_load_n(&moving->batch_bytes, __ATOMIC_RELAXED);
		int error;

		if (!crew_go_on()) {
			cursor_leave(&moving->cursor);
			add(&moving->left, 1);
			break;
		}
		if (!cursor_claim(&moving->cursor, &batch, bytes))
			break;
		error = sort_out(moving, &batch, &pending);
		if (error) {
			move_stop(move, -error);
			skip_batch(moving, &batch);
			break;
		}
		move_pending(moving, &batch, &pending, worker);
		poll_if_due(moving, worker);
	}
}

/* What nobody took, because of a cancel or a refusal. */
static void count_rest(struct moving *moving)
{
	struct pf_move *move = moving->move;
	uint64_t pages, bytes, first, i;

	first = cursor_drain(&moving->cursor, &pages, &bytes);
	move->progress.pages_skipped += pages;
	move->progress.bytes_skipped += bytes;
	for (i = 0; move->statuses && i < pages; i++)
		move->statuses[first + i] = PF_STATUS_UNKNOWN;
}

int pf_move_run(struct pf_move *move)
{
	uint64_t pages = extents_pages(move->extents, move->n_extents);
	struct moving moving = { .move = move, .patience = PATIENCE };
	uint32_t threads = move->threads;
	int workers = -ENOBUFS;

	if (!threads || threads > PF_MAX_THREADS || move->target < 0 ||
	    (move->blocking != PF_ASYNC && move->blocking != PF_SYNC_LIGHT &&
	     move->blocking != PF_SYNC))
		return -EINVAL;
	if (threads > pages)
		threads = pages ? (uint32_t)pages : 1;
	moving.base_shift = (uint32_t)__builtin_ctzl((unsigned long)sysconf(_SC_PAGESIZE));
	moving.batch_bytes = move->batch_bytes ? move->batch_bytes : BATCH_BYTES_MIN;
	moving.polled_us = now_us();
	if (!cursor_init(&moving.cursor, move->extents, move->n_extents, threads)) {
		moving.capacity = batch_capacity(pages, threads);
		moving.room = malloc(worker_room(moving.capacity) * threads + 1);
	}
	if (moving.room)
		workers = pf_crew_run(threads, move->cpus, move_work, &moving,
				      poll_now, &moving, move->poll_us);
	else
		move_stop(move, ENOBUFS);
	if (workers > (int)move->workers)
		move->workers = (uint32_t)workers;
	move->helpers_left += (uint32_t)moving.left;
	count_rest(&moving);
	move->batch_bytes = moving.batch_bytes;
	free(moving.room);
	cursor_destroy(&moving.cursor);
	if (workers < 0 && !move->error)
		return workers;
	if (move->error)
		return -move->error;
	return move->cancel ? -ECANCELED : 0;
}
