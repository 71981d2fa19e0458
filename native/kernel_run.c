// SPDX-License-Identifier: Apache-2.0
/* The kernel engine's workers, and the run that they make together. */
#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "crew.h"
#include "kernel_engine.h"

#define FIRST_BYTES (2u << 20)	/* not less than a huge page that is listed in base pages */

/* Less for each worker is done before a helper has been woken up. */
#define WORKER_BYTES (128u << 10)

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

/* What a worker works on. */
struct lists {
	struct batch batch;
	struct pending pending;
};

static size_t lists_room(uint64_t capacity)
{
	return batch_room(capacity) + pending_room(capacity);
}

static void lists_place(struct lists *lists, const struct moving *moving, uint32_t worker)
{
	char *room = moving->room + worker * lists_room(moving->capacity);

	batch_place(&lists->batch, room, moving->capacity);
	pending_place(&lists->pending, room + batch_room(moving->capacity), moving->capacity);
}

static void skip_batch(struct moving *moving, const struct batch *batch)
{
	uint64_t i;

	for (i = 0; i < batch->count; i++)
		count_skipped(moving, batch, i);
}

static uint64_t pending_bytes(const struct batch *batch, const struct pending *pending)
{
	uint64_t bytes = 0;
	uint64_t i;

	if (pending->count == batch->count)
		return batch->bytes;
	for (i = 0; i < pending->count; i++)
		bytes += 1ull << batch->shift[pending->slot[i]];
	return bytes;
}

/* Claim a batch of at most limit bytes and move it. False: there was none, or no use. */
static bool move_batch(struct moving *moving, struct lists *lists, uint32_t worker,
		       uint64_t limit)
{
	struct pf_move *move = moving->move;
	struct pace *pace = &moving->pace;
	uint64_t bytes, until, rate;
	bool smooth;
	int error;

	if (!cursor_claim(&moving->cursor, &lists->batch, pace_piece(pace, limit)))
		return false;
	error = sort_out(moving, &lists->batch, &lists->pending);
	if (error) {
		move_stop(move, -error);
		skip_batch(moving, &lists->batch);
		return false;
	}
	bytes = pending_bytes(&lists->batch, &lists->pending);
	rate = __atomic_load_n(&move->pace.max_rate, __ATOMIC_RELAXED);
	until = pace_reserve(pace, bytes);
	pace_begin(pace, worker, bytes);
	smooth = move_pending(moving, &lists->batch, &lists->pending, worker);
	pace_end(pace, worker, bytes, smooth ? batch_shift(&lists->batch) : 0);
	do
		poll_if_due(moving, worker);
	while (!move_stopped(move) && pace_sleep(until) &&
	       rate == __atomic_load_n(&move->pace.max_rate, __ATOMIC_RELAXED));
	return true;
}

/*
 * A helper's first piece is small: that it got a CPU at once does not mean that
 * it keeps it, and who takes it away should not wait for a large one.
 */
static uint64_t next_limit(const struct moving *moving, uint32_t worker, uint64_t pieces)
{
	uint64_t bytes = __atomic_load_n(&moving->batch_bytes, __ATOMIC_RELAXED);

	return worker && !pieces && bytes > FIRST_BYTES ? FIRST_BYTES : bytes;
}

/*
 * Batches are for those who are there: helpers that have not begun when worker
 * 0 has done its first piece may never come, and small batches are dear on a
 * busy machine.
 */
static void count_workers(struct moving *moving, uint32_t worker)
{
	if (!worker)
		__atomic_store_n(&moving->counted, 1, __ATOMIC_RELAXED);
	if (__atomic_load_n(&moving->counted, __ATOMIC_RELAXED))
		cursor_share(&moving->cursor, 1 + pace_helping(&moving->pace));
}

/*
 * One that saw a pause tells the others, for whom it may have been too short:
 * without it they would be fewer for the rest.
 */
static bool held(struct moving *moving)
{
	if (pace_paused(&moving->move->pause))
		__atomic_store_n(&moving->held, 1, __ATOMIC_RELAXED);
	return __atomic_load_n(&moving->held, __ATOMIC_RELAXED);
}

static void move_work(void *arg, uint32_t worker)
{
	struct moving *moving = arg;
	struct pf_move *move = moving->move;
	struct pace *pace = &moving->pace;
	uint64_t pieces = 0;
	struct lists lists;

	lists_place(&lists, moving, worker);
	pace_come(pace, worker);
	if (worker)
		count_workers(moving, worker);
	while (!move_stopped(move) && !held(moving)) {
		if (!pace_go_on(pace, worker) || !crew_go_on()) {
			if (pace_go_on(pace, worker))
				pace_leave(pace);
			break;
		}
		if (!move_batch(moving, &lists, worker, next_limit(moving, worker, pieces++)))
			break;
		if (!worker)
			count_workers(moving, worker);
		if (!worker && pace_judge(pace, cursor_left(&moving->cursor)))
			break;
	}
	poll_if_due(moving, worker);	/* the helpers may have done it all */
	pace_go(pace, worker);
	if (worker)
		count_workers(moving, worker);
}

/* Nobody else is at work then: the crew is free for others. */
static void wait_while_paused(struct moving *moving)
{
	struct pf_move *move = moving->move;

	while (!move_stopped(move) && pace_paused(&move->pause)) {
		poll_if_due(moving, 0);
		pace_nap();
	}
}

/*
 * Run with all threads; again after a pause, and when the caller, alone by then,
 * came back for the others.
 */
static int move_together(struct moving *moving, uint32_t threads)
{
	struct pf_move *move = moving->move;
	struct pace *pace = &moving->pace;
	uint64_t probe;
	int workers, most = 0;

	wait_while_paused(moving);
	probe = pace_probe(pace, cursor_left(&moving->cursor));
	if (probe && !move_stopped(move)) {
		struct lists lists;

		lists_place(&lists, moving, 0);
		move_batch(moving, &lists, 0, probe);
	}
	do {
		pace_together(pace);
		moving->counted = 0;
		moving->held = 0;
		cursor_share(&moving->cursor, threads);
		workers = pf_crew_run(threads, move->cpus, move_work, moving, poll_now, moving,
				      move->poll_us);
		if (workers > most)
			most = workers;
		wait_while_paused(moving);
	} while (workers > 0 && cursor_left(&moving->cursor) && !move_stopped(move));
	return workers < 0 ? workers : most;
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

static void skip_all(struct pf_move *move)
{
	uint64_t i;

	for (i = 0; i < move->n_extents; i++) {
		move->progress.pages_skipped += move->extents[i].pages;
		move->progress.bytes_skipped += move->extents[i].pages << move->extents[i].shift;
	}
}

/* Everything that the workers need is allocated here. 0 or -ENOBUFS. */
static int prepare(struct moving *moving, uint32_t threads)
{
	struct pf_move *move = moving->move;
	size_t slots = threads * sizeof(*moving->pace.slots);
	uint64_t smallest;

	if (cursor_init(&moving->cursor, move->extents, move->n_extents, threads))
		return -ENOBUFS;
	/* The plan may be of another size: not more than a worker's share. */
	smallest = moving->cursor.bytes / threads;
	if (smallest > move->smallest_bytes)
		smallest = move->smallest_bytes;
	if (moving->cursor.smallest < smallest)
		moving->cursor.smallest = smallest;
	moving->capacity = batch_capacity(moving->cursor.pages, threads);
	moving->memory = malloc(slots + threads * lists_room(moving->capacity));
	if (!moving->memory) {
		cursor_destroy(&moving->cursor);
		return -ENOBUFS;
	}
	memset(moving->memory, 0, slots);
	moving->room = moving->memory + slots;
	moving->pace.book = &move->pace;
	moving->pace.slots = (struct pace_slot *)moving->memory;
	moving->pace.workers = threads;
	return 0;
}

static uint32_t worth_having(const struct pf_move *move, uint64_t pages)
{
	uint64_t bytes = 0, most, i;

	for (i = 0; i < move->n_extents && bytes < (uint64_t)move->threads * WORKER_BYTES; i++)
		bytes += move->extents[i].pages << move->extents[i].shift;
	most = bytes / WORKER_BYTES;
	if (most > pages)
		most = pages;
	return most < move->threads ? (most ? (uint32_t)most : 1) : move->threads;
}

static int run(struct pf_move *move)
{
	uint64_t pages = extents_pages(move->extents, move->n_extents);
	struct moving moving = { .move = move, .patience = PATIENCE };
	uint32_t threads = move->threads;
	int workers;

	if (!threads || threads > PF_MAX_THREADS || move->target < 0 ||
	    (move->blocking != PF_ASYNC && move->blocking != PF_SYNC_LIGHT &&
	     move->blocking != PF_SYNC))
		return -EINVAL;
	threads = worth_having(move, pages);
	moving.base_shift = (uint32_t)__builtin_ctzl((unsigned long)sysconf(_SC_PAGESIZE));
	moving.batch_bytes = move->batch_bytes ? move->batch_bytes : BATCH_BYTES_MIN;
	moving.polled_us = now_us();
	if (prepare(&moving, threads)) {
		move_stop(move, ENOBUFS);
		skip_all(move);
		return -ENOBUFS;
	}
	workers = move_together(&moving, threads);
	if (workers > (int)move->workers)
		move->workers = (uint32_t)workers;
	count_rest(&moving);
	move->batch_bytes = moving.batch_bytes;
	free(moving.memory);
	cursor_destroy(&moving.cursor);
	if (workers < 0)
		return workers;
	if (move->error)
		return -move->error;
	return move->cancel ? -ECANCELED : 0;
}

int pf_move_run(struct pf_move *move)
{
	int cancelling, result;

	/* A thread that ended at a pause between two batches would leave its lists behind. */
	pthread_setcancelstate(PTHREAD_CANCEL_DISABLE, &cancelling);
	result = run(move);
	pthread_setcancelstate(cancelling, NULL);
	return result;
}
