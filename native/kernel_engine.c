// SPDX-License-Identifier: Apache-2.0
/*
 * The kernel engine: move_pages(2) on batches of a page list, from many threads.
 */
#include <errno.h>
#include <string.h>
#include <time.h>

#include "kernel_engine.h"

enum {
	SAMPLE_STRIDE = 64,	/* one base page in so many is asked for its node first */
	FAST_RETRIES = 2,	/* at once */
	PAUSE_US = 250,		/* before the next one, then doubled */
	LIGHT_PAUSES = 4,	/* 0.25 to 2 ms: 3.75 ms for a batch at most */
	SYNC_PAUSES = 9,	/* 0.25 to 64 ms: 128 ms for a batch at most */
	FULL_RETRY_US = 10000,
};

bool move_stopped(const struct pf_move *move)
{
	return __atomic_load_n(&move->cancel, __ATOMIC_RELAXED) ||
	       __atomic_load_n(&move->error, __ATOMIC_RELAXED);
}

void move_stop(struct pf_move *move, int error)
{
	int32_t none = 0;

	__atomic_compare_exchange_n(&move->error, &none, error, false,
				    __ATOMIC_RELAXED, __ATOMIC_RELAXED);
}

int poll_now(void *arg)
{
	struct moving *moving = arg;
	struct pf_move *move = moving->move;

	moving->polled_us = now_us();
	/* Once it has cancelled, whoever polls need not be asked again. */
	if (move->poll && !__atomic_load_n(&move->cancel, __ATOMIC_RELAXED) &&
	    move->poll(move->poll_arg))
		__atomic_store_n(&move->cancel, 1, __ATOMIC_RELAXED);
	return 0;
}

void poll_if_due(struct moving *moving, uint32_t worker)
{
	struct pf_move *move = moving->move;

	if (worker == 0 && move->poll && move->poll_us &&
	    now_us() - moving->polled_us >= move->poll_us)
		poll_now(moving);
}

/* ---- Which pages of a batch have to move ---------------------------------- */

static bool is_source(const struct pf_move *move, int32_t node)
{
	if (!move->sources)
		return true;
	return node >= 0 && node < PF_MAX_NODES &&
	       (move->sources[node / 64] >> (node % 64) & 1);
}

/*
 * Asking for the node of every base page costs several percent of moving it.
 * Unless exactness is wanted, ask for one in SAMPLE_STRIDE, and for the rest
 * only when one of those is on the target already. A page there costs nothing
 * but a flush of the kernel's batch, so a miss is a matter of counting.
 */
static bool worth_asking_all(struct moving *moving, const struct batch *batch,
			     struct pending *sample)
{
	const struct pf_move *move = moving->move;
	uint64_t i;

	if (move->sources || (move->flags & PF_MOVE_EXACT) || batch->count <= SAMPLE_STRIDE * 2 ||
	    batch->kind[0] != PF_PAGE_BASE || batch->kind[batch->count - 1] != PF_PAGE_BASE)
		return true;
	sample->count = 0;
	for (i = 0; i < batch->count; i += SAMPLE_STRIDE)
		sample->address[sample->count++] = batch->address[i];
	sample->address[sample->count++] = batch->address[batch->count - 1];
	if (query_nodes(move->pid, sample->count, sample->address, sample->status))
		return true;	/* the full question will fail too, and say why */
	for (i = 0; i < sample->count; i++)
		if (sample->status[i] == move->target)
			return true;
	return false;
}

static void want(struct pending *pending, const struct batch *batch, uint64_t slot)
{
	pending->slot[pending->count] = (uint32_t)slot;
	pending->address[pending->count] = batch->address[slot];
	pending->count++;
}

int sort_out(struct moving *moving, struct batch *batch, struct pending *pending)
{
	struct pf_move *move = moving->move;
	uint64_t i;
	int error;

	if (!worth_asking_all(moving, batch, pending)) {
		pending->count = 0;
		for (i = 0; i < batch->count; i++)
			want(pending, batch, i);
		add(&move->progress.pages_unsampled, batch->count);
		return 0;
	}
	pending->count = 0;
	error = query_nodes(move->pid, batch->count, batch->address, batch->status);
	if (error)
		return error;
	for (i = 0; i < batch->count; i++) {
		int32_t status = batch->status[i];

		if (status == move->target)
			count_already(moving, batch, i);
		else if (status == -ENOENT && move->blocking != PF_ASYNC && !move->sources)
			want(pending, batch, i);	/* on its way somewhere, maybe */
		else if (status < 0)
			count_by_status(moving, batch, i, status);
		else if (!is_source(move, status))
			count_elsewhere(moving, batch, i, status);
		else
			want(pending, batch, i);
	}
	return 0;
}

/* ---- Moving ----------------------------------------------------------------- */

/* Fit the batch to the time that one call should take. */
static void adapt(struct moving *moving, uint64_t bytes, uint64_t us)
{
	struct pf_move *move = moving->move;
	uint64_t longest = __atomic_load_n(&move->progress.longest_call_us, __ATOMIC_RELAXED);
	uint64_t now = __atomic_load_n(&moving->batch_bytes, __ATOMIC_RELAXED);
	uint64_t fit;

	while (us > longest &&
	       !__atomic_compare_exchange_n(&move->progress.longest_call_us, &longest, us, true,
					    __ATOMIC_RELAXED, __ATOMIC_RELAXED))
		;
	if (!move->batch_us || bytes < BATCH_BYTES_MIN)
		return;
	fit = bytes * move->batch_us / (us ? us : 1);
	fit = (now + fit) / 2;	/* one slow call must not decide alone */
	if (fit > 2 * now)
		fit = 2 * now;
	if (fit < BATCH_BYTES_MIN)
		fit = BATCH_BYTES_MIN;
	if (fit > BATCH_BYTES_MAX)
		fit = BATCH_BYTES_MAX;
	__atomic_store_n(&moving->batch_bytes, fit, __ATOMIC_RELAXED);
}

static long call_move_pages(struct moving *moving, struct pending *pending)
{
	struct pf_move *move = moving->move;
	uint64_t i;

	for (i = 0; i < pending->count; i++) {
		pending->status[i] = PF_STATUS_UNKNOWN;
		pending->node[i] = move->target;
	}
	add(&move->progress.calls, 1);
	return sys_move_pages(move->pid, pending->count, pending->address, pending->node,
			      pending->status, move_flags(move));
}

static void pause_us(unsigned int us)
{
	struct timespec time = { .tv_sec = 0, .tv_nsec = (long)us * 1000 };

	nanosleep(&time, NULL);
}

static unsigned int most_tries(const struct pf_move *move)
{
	switch (move->blocking) {
	case PF_SYNC:
		return FAST_RETRIES + SYNC_PAUSES;
	case PF_SYNC_LIGHT:
		return FAST_RETRIES + LIGHT_PAUSES;
	default:
		return 0;
	}
}

/*
 * Does the next try come at once, after a pause, or not at all? Who holds the
 * page, compaction for one, may itself have to wait for a CPU, so tries that
 * follow each other at once are not enough to tell a busy page from a pinned one.
 */
static bool another_try(struct moving *moving, unsigned int tries, uint32_t worker)
{
	struct pf_move *move = moving->move;

	if (tries > most_tries(move) || move_stopped(move))
		return false;
	if (tries <= FAST_RETRIES)
		return true;
	if (__atomic_load_n(&moving->patience, __ATOMIC_RELAXED) <= 0)
		return false;
	pause_us(PAUSE_US << (tries - FAST_RETRIES - 1));
	poll_if_due(moving, worker);
	return !move_stopped(move);
}

/* A page that is nowhere is freed, or on its way: for how long is it asked again? */
static bool wait_for_absent(const struct moving *moving, unsigned int tries)
{
	if (moving->move->blocking == PF_ASYNC)
		return false;
	if (__atomic_load_n(&moving->patience, __ATOMIC_RELAXED) <= 0)
		return tries < FAST_RETRIES;
	return tries < FAST_RETRIES + LIGHT_PAUSES;
}

/* Pages were settled after a pause: moved, or when the wait for absent ones ends, freed. */
static void judge_patience(struct moving *moving, unsigned int tries)
{
	if (tries == FAST_RETRIES + LIGHT_PAUSES)
		__atomic_fetch_sub(&moving->patience, 1, __ATOMIC_RELAXED);
	else if (tries > FAST_RETRIES)
		__atomic_store_n(&moving->patience, PATIENCE, __ATOMIC_RELAXED);
}

/* No more tries: what is nowhere now has been freed, and is no failure. */
static void forget_absent(struct moving *moving, struct batch *batch, struct pending *pending)
{
	if (!query_nodes(moving->move->pid, pending->count, pending->address, pending->status))
		settle(moving, batch, pending, false);
}

static bool holes_in(const struct pending *pending)
{
	uint64_t i;

	for (i = 0; i < pending->count; i++)
		if (pending->status[i] < 0 && pending->status[i] != PF_STATUS_UNKNOWN)
			return true;
	return false;
}

static void note_torn(const struct batch *batch, struct pending *pending)
{
	uint64_t i;

	for (i = 0; i < pending->count; i++)
		if (batch->kind[pending->slot[i]] == PF_PAGE_THP)
			pending->torn[pending->slot[i]] = 1;
}

bool move_pending(struct moving *moving, struct batch *batch, struct pending *pending,
		  uint32_t worker)
{
	struct pf_move *move = moving->move;
	bool full = false, regrouped = false;
	unsigned int tries = 0;

	memset(pending->torn, 0, batch->count);
	while (pending->count) {
		uint64_t asked = pending->count;
		uint64_t begun = now_us();
		long result = call_move_pages(moving, pending);
		uint64_t settled = 0;
		bool cut_short;
		int error;

		if (result == -EINTR)
			continue;
		if (!tries && asked == batch->count)
			adapt(moving, batch->bytes, now_us() - begun);
		if (result)
			note_torn(batch, pending);
		/* A hole ends the kernel's group; after a failure there it tries no more. */
		cut_short = result > 0 && holes_in(pending);
		error = clear_up(moving, pending, batch->status);
		if (!error)
			settled = settle(moving, batch, pending, wait_for_absent(moving, tries));
		if (result < 0 && result != -ENOMEM)
			error = (int)result;
		if (error) {
			refuse(moving, batch, pending, -error);
			return false;
		}
		if (settled)
			judge_patience(moving, tries);
		if (!pending->count)
			break;
		if (result == -ENOMEM && !full && move->blocking != PF_ASYNC && !move_stopped(move)) {
			full = true;	/* reclaim has been woken: once more */
			pause_us(FULL_RETRY_US);
			continue;
		}
		if (result == -ENOMEM) {
			if (give_up_hugetlb(moving, batch, pending)) {
				full = false;
				continue;
			}
			give_up(moving, batch, pending, ENOMEM);
			move_stop(move, ENOMEM);
			return false;
		}
		if (cut_short && (settled || !regrouped)) {
			regrouped = true;	/* the rest had no try of its own yet */
			continue;
		}
		if (!another_try(moving, ++tries, worker)) {
			if (tries > FAST_RETRIES && tries > most_tries(move))
				__atomic_fetch_sub(&moving->patience, 1, __ATOMIC_RELAXED);
			forget_absent(moving, batch, pending);
			/* Cut off by another worker that found the target full: so did this one. */
			error = __atomic_load_n(&move->error, __ATOMIC_RELAXED);
			give_up(moving, batch, pending, error == ENOMEM ? ENOMEM : EBUSY);
			return false;
		}
		add(&move->progress.retried, tries == 1 ? pending->count : 0);
	}	return !tries;
}
