// SPDX-License-Identifier: Apache-2.0
/*
 * The kernel engine: move_pages(2) on batches of a page list, from many threads.
 *
 * What the system call says is subtle (see do_pages_move in mm/migrate.c):
 *  - it returns > 0 when pages were not moved, and then leaves the status of
 *    all pages of the failing group unwritten, moved or not;
 *  - it gives up at the first such group, so later pages were never tried;
 *  - pages inside a large folio whose head is listed too come back EBUSY
 *    although the folio moved.
 * So a page counts as moved only when the kernel names the target node for it,
 * and whatever is not clear is asked again before it is called a failure.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "pages.h"

enum {
	SAMPLE_STRIDE = 64,	/* one base page in so many is asked for its node first */
	FAST_RETRIES = 2,
	PAUSES = 7,		/* 1, 2, 4, ... 64 ms: 127 ms for a batch at most */
	FULL_RETRY_MS = 10,
	PATIENCE = 8,		/* batches whose pauses were in vain before we stop pausing */
	MPOL_MF_MOVE_FLAG = 1 << 1,
	MPOL_MF_MOVE_ALL_FLAG = 1 << 2,
};

#define BATCH_BYTES_MIN (2u << 20)
#define BATCH_BYTES_MAX (256u << 20)

/* One pf_move_run() call. */
struct moving {
	struct pf_move *move;
	struct cursor cursor;
	uint64_t batch_bytes;	/* adapted by all workers, last one wins */
	uint64_t polled_us;	/* worker 0 only */
	int32_t patience;
	uint32_t base_shift;
};

/* What one worker needs besides its batch: the pages still to be moved. */
struct pending {
	uint64_t count;
	uint32_t *slot;		/* in the batch */
	uint64_t *address;
	int32_t *node;		/* the target, for each */
	int32_t *status;
	uint64_t *asked;	/* addresses asked about again */
};

static void add(uint64_t *counter, uint64_t count)
{
	__atomic_fetch_add(counter, count, __ATOMIC_RELAXED);
}

static bool stopped(const struct pf_move *move)
{
	return __atomic_load_n(&move->cancel, __ATOMIC_RELAXED) ||
	       __atomic_load_n(&move->error, __ATOMIC_RELAXED);
}

static void stop(struct pf_move *move, int error)
{
	int32_t none = 0;

	__atomic_compare_exchange_n(&move->error, &none, error, false,
				    __ATOMIC_RELAXED, __ATOMIC_RELAXED);
}

static int poll_now(void *arg)
{
	struct moving *moving = arg;
	struct pf_move *move = moving->move;

	moving->polled_us = now_us();
	if (move->poll && move->poll(move->poll_arg))
		__atomic_store_n(&move->cancel, 1, __ATOMIC_RELAXED);
	return 0;
}

static void poll_if_due(struct moving *moving, uint32_t worker)
{
	struct pf_move *move = moving->move;

	if (worker == 0 && move->poll && move->poll_us &&
	    now_us() - moving->polled_us >= move->poll_us)
		poll_now(moving);
}

/* ---- Counting: every page of a batch passes through exactly one of these --- */

static void set_status(struct moving *moving, const struct batch *batch, uint64_t slot,
		       int32_t status)
{
	if (moving->move->statuses)
		moving->move->statuses[batch->index + slot] = status;
}

static void count_moved(struct moving *moving, const struct batch *batch, uint64_t slot)
{
	struct pf_progress *progress = &moving->move->progress;

	add(&progress->bytes_moved, 1ull << batch->shift[slot]);
	add(&progress->pages_moved[batch->kind[slot]], 1);
	set_status(moving, batch, slot, moving->move->target);
}

static void count_already(struct moving *moving, const struct batch *batch, uint64_t slot)
{
	struct pf_progress *progress = &moving->move->progress;

	add(&progress->bytes_already, 1ull << batch->shift[slot]);
	add(&progress->pages_already[batch->kind[slot]], 1);
	set_status(moving, batch, slot, moving->move->target);
}

static void count_elsewhere(struct moving *moving, const struct batch *batch, uint64_t slot,
			    int32_t node)
{
	struct pf_progress *progress = &moving->move->progress;

	add(&progress->bytes_elsewhere, 1ull << batch->shift[slot]);
	add(&progress->pages_elsewhere, 1);
	set_status(moving, batch, slot, node);
}

static void count_gone(struct moving *moving, const struct batch *batch, uint64_t slot,
		       int32_t status)
{
	struct pf_progress *progress = &moving->move->progress;

	add(&progress->bytes_gone, 1ull << batch->shift[slot]);
	add(&progress->pages_gone, 1);
	set_status(moving, batch, slot, status);
}

static void count_skipped(struct moving *moving, const struct batch *batch, uint64_t slot)
{
	struct pf_progress *progress = &moving->move->progress;

	add(&progress->bytes_skipped, 1ull << batch->shift[slot]);
	add(&progress->pages_skipped, 1);
	set_status(moving, batch, slot, PF_STATUS_UNKNOWN);
}

static void remember_failure(struct pf_progress *progress, uint64_t address, int error,
			     uint32_t shift)
{
	uint64_t seen = __atomic_fetch_add(&progress->failures_seen, 1, __ATOMIC_RELAXED);

	if (seen >= PF_MAX_FAILURES)
		return;
	progress->failures[seen].address = address;
	progress->failures[seen].error = error;
	progress->failures[seen].shift = (int32_t)shift;
}

static void count_failed(struct moving *moving, const struct batch *batch, uint64_t slot,
			 int error)
{
	struct pf_progress *progress = &moving->move->progress;

	add(&progress->bytes_failed, 1ull << batch->shift[slot]);
	add(&progress->failed[error < PF_MAX_ERRNO ? error : EIO], 1);
	remember_failure(progress, batch->address[slot], error, batch->shift[slot]);
	set_status(moving, batch, slot, -error);
}

/* A page that will not be tried again, by what the kernel said of it last. */
static void count_by_status(struct moving *moving, const struct batch *batch, uint64_t slot,
			    int32_t status)
{
	if (status == moving->move->target)
		count_moved(moving, batch, slot);
	else if (status == -ENOENT || status == -EFAULT)
		count_gone(moving, batch, slot, status);
	else if (status == PF_STATUS_UNKNOWN)
		count_skipped(moving, batch, slot);
	else
		count_failed(moving, batch, slot, status < 0 ? -status : EBUSY);
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

/* Count what needs no move; the rest becomes pending. 0 or -errno. */
static int sort_out(struct moving *moving, struct batch *batch, struct pending *pending)
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
	int flags = move->flags & PF_MOVE_SHARED ? MPOL_MF_MOVE_ALL_FLAG : MPOL_MF_MOVE_FLAG;
	uint64_t i;

	for (i = 0; i < pending->count; i++) {
		pending->status[i] = PF_STATUS_UNKNOWN;
		pending->node[i] = move->target;
	}
	add(&move->progress.calls, 1);
	return sys_move_pages(move->pid, pending->count, pending->address, pending->node,
			      pending->status, flags);
}

/*
 * Ask again for the pages whose status says nothing, or EBUSY: where are they
 * now? Returns false when the kernel does not answer (the process is gone).
 */
static bool clear_up(struct moving *moving, struct pending *pending, int32_t *answer)
{
	const int32_t unknown = PF_STATUS_UNKNOWN;
	uint64_t count = 0, i;

	for (i = 0; i < pending->count; i++)
		if (pending->status[i] == unknown || pending->status[i] == -EBUSY)
			pending->asked[count++] = pending->address[i];
	if (!count)
		return true;
	if (query_nodes(moving->move->pid, count, pending->asked, answer))
		return false;
	count = 0;
	for (i = 0; i < pending->count; i++)
		if (pending->status[i] == unknown || pending->status[i] == -EBUSY)
			pending->status[i] = answer[count++];
	return true;
}

/* Count what is settled and keep what is on another node. Returns pages settled. */
static uint64_t settle(struct moving *moving, struct batch *batch, struct pending *pending)
{
	uint64_t before = pending->count;
	uint64_t kept = 0, i;

	for (i = 0; i < before; i++) {
		int32_t status = pending->status[i];

		if (status >= 0 && status != moving->move->target) {
			pending->slot[kept] = pending->slot[i];
			pending->address[kept] = pending->address[i];
			kept++;
		} else {
			count_by_status(moving, batch, pending->slot[i], status);
		}
	}
	pending->count = kept;
	return before - kept;
}

static void pause_ms(unsigned int ms)
{
	struct timespec time = { .tv_sec = 0, .tv_nsec = (long)ms * 1000000 };

	nanosleep(&time, NULL);
}

/* Does the next try come at once, after a pause, or not at all? */
static bool another_try(struct moving *moving, unsigned int tries, uint32_t worker)
{
	struct pf_move *move = moving->move;

	if (move->blocking == PF_ASYNC || stopped(move))
		return false;
	if (tries <= FAST_RETRIES)
		return true;
	if (move->blocking != PF_SYNC || tries > FAST_RETRIES + PAUSES ||
	    __atomic_load_n(&moving->patience, __ATOMIC_RELAXED) <= 0)
		return false;
	pause_ms(1u << (tries - FAST_RETRIES - 1));
	poll_if_due(moving, worker);
	return !stopped(move);
}

/*
 * A huge page that would not move whole may have been split and moved in part,
 * when the target had no huge page left. Its base pages tell.
 */
static void settle_huge(struct moving *moving, struct batch *batch, struct pending *pending,
			uint64_t which, int error)
{
	struct pf_move *move = moving->move;
	uint32_t slot = pending->slot[which];
	uint64_t pages = 1ull << (batch->shift[slot] - moving->base_shift);
	uint64_t moved = 0, done, i;
	uint64_t address[256];
	int32_t status[256];

	for (done = 0; done < pages; done += 256) {
		uint64_t count = pages - done < 256 ? pages - done : 256;

		for (i = 0; i < count; i++)
			address[i] = batch->address[slot] + ((done + i) << moving->base_shift);
		if (query_nodes(move->pid, count, address, status))
			break;
		for (i = 0; i < count; i++)
			moved += status[i] == move->target;
	}
	if (moved == pages) {
		count_moved(moving, batch, slot);
		return;
	}
	if (!moved) {
		count_failed(moving, batch, slot, error);
		return;
	}
	add(&move->progress.pages_moved[PF_PAGE_BASE], moved);
	add(&move->progress.bytes_moved, moved << moving->base_shift);
	add(&move->progress.bytes_failed, (pages - moved) << moving->base_shift);
	add(&move->progress.failed[error], pages - moved);
	remember_failure(&move->progress, batch->address[slot], error, batch->shift[slot]);
	set_status(moving, batch, slot, -error);
}

static void give_up(struct moving *moving, struct batch *batch, struct pending *pending, int error)
{
	uint64_t i;

	for (i = 0; i < pending->count; i++) {
		if (batch->kind[pending->slot[i]] == PF_PAGE_THP)
			settle_huge(moving, batch, pending, i, error);
		else
			count_failed(moving, batch, pending->slot[i], error);
	}
	pending->count = 0;
}

/* The kernel refused the call as a whole, before or after moving some. */
static void refuse(struct moving *moving, struct batch *batch, struct pending *pending, int error)
{
	uint64_t i;

	stop(moving->move, error);
	for (i = 0; i < pending->count; i++)
		count_skipped(moving, batch, pending->slot[i]);
	pending->count = 0;
}

static bool holes_in(const struct pending *pending)
{
	uint64_t i;

	for (i = 0; i < pending->count; i++)
		if (pending->status[i] < 0 && pending->status[i] != PF_STATUS_UNKNOWN)
			return true;
	return false;
}

static void move_pending(struct moving *moving, struct batch *batch, struct pending *pending,
			 uint32_t worker)
{
	struct pf_move *move = moving->move;
	unsigned int tries = 0;
	bool full = false;
	uint64_t settled;

	while (pending->count) {
		uint64_t asked = pending->count;
		uint64_t begun = now_us();
		long result = call_move_pages(moving, pending);
		bool cut_short;

		if (result == -EINTR)
			continue;
		if (!tries && asked == batch->count)
			adapt(moving, batch->bytes, now_us() - begun);
		if (result < 0 && result != -ENOMEM) {
			/* Some may have moved before the refusal: ask, if we may. */
			if (clear_up(moving, pending, batch->status))
				settle(moving, batch, pending);
			refuse(moving, batch, pending, (int)-result);
			return;
		}
		/* A hole ends the kernel's group; after a failure there it tries no more. */
		cut_short = result > 0 && holes_in(pending);
		if (!clear_up(moving, pending, batch->status)) {
			refuse(moving, batch, pending, ESRCH);
			return;
		}
		settled = settle(moving, batch, pending);
		if (!pending->count)
			break;
		if (result == -ENOMEM) {
			if (full || move->blocking == PF_ASYNC || stopped(move)) {
				give_up(moving, batch, pending, ENOMEM);
				stop(move, ENOMEM);
				return;
			}
			full = true;	/* reclaim has been woken: once more */
			pause_ms(FULL_RETRY_MS);
			continue;
		}
		if (tries > FAST_RETRIES && settled)
			__atomic_store_n(&moving->patience, PATIENCE, __ATOMIC_RELAXED);
		if (cut_short && settled)
			continue;	/* the rest had no try of its own yet */
		add(&move->progress.retried, tries ? 0 : pending->count);
		if (!another_try(moving, ++tries, worker)) {
			if (tries > FAST_RETRIES + PAUSES)
				__atomic_fetch_sub(&moving->patience, 1, __ATOMIC_RELAXED);
			give_up(moving, batch, pending, EBUSY);
			return;
		}
	}
}

/* ---- Workers ------------------------------------------------------------------ */

static int pending_alloc(struct pending *pending, uint64_t capacity)
{
	memset(pending, 0, sizeof(*pending));
	pending->slot = malloc(capacity * sizeof(*pending->slot));
	pending->address = malloc(capacity * sizeof(*pending->address));
	pending->node = malloc(capacity * sizeof(*pending->node));
	pending->status = malloc(capacity * sizeof(*pending->status));
	pending->asked = malloc(capacity * sizeof(*pending->asked));
	return pending->slot && pending->address && pending->node && pending->status &&
	       pending->asked ? 0 : -ENOMEM;
}

static void pending_free(struct pending *pending)
{
	free(pending->slot);
	free(pending->address);
	free(pending->node);
	free(pending->status);
	free(pending->asked);
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
	uint64_t capacity = extents_pages(move->extents, move->n_extents);
	struct pending pending;
	struct batch batch;

	if (capacity > BATCH_PAGES_MAX)
		capacity = BATCH_PAGES_MAX;
	if (batch_alloc(&batch, capacity)) {
		if (worker == 0)	/* the others can do without this one */
			stop(move, ENOMEM);
		return;
	}
	if (pending_alloc(&pending, capacity)) {
		if (worker == 0)
			stop(move, ENOMEM);
		goto out;
	}
	while (!stopped(move)) {
		uint64_t bytes = __atomic_load_n(&moving->batch_bytes, __ATOMIC_RELAXED);
		int error;

		if (!cursor_claim(&moving->cursor, &batch, bytes))
			break;
		error = sort_out(moving, &batch, &pending);
		if (error) {
			stop(move, -error);
			skip_batch(moving, &batch);
			break;
		}
		move_pending(moving, &batch, &pending, worker);
		poll_if_due(moving, worker);
	}
out:
	pending_free(&pending);
	batch_free(&batch);
}

/* What nobody took, because of a cancel or a refusal. */
static void count_rest(struct moving *moving)
{
	struct pf_move *move = moving->move;
	uint64_t first = moving->cursor.index;
	uint64_t pages, bytes, i;

	cursor_drain(&moving->cursor, &pages, &bytes);
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
	int workers;

	if (!threads || threads > PF_MAX_THREADS || move->target < 0 ||
	    (move->blocking != PF_ASYNC && move->blocking != PF_SYNC_LIGHT &&
	     move->blocking != PF_SYNC))
		return -EINVAL;
	if (threads > pages)
		threads = pages ? (uint32_t)pages : 1;
	moving.base_shift = (uint32_t)__builtin_ctzl((unsigned long)sysconf(_SC_PAGESIZE));
	moving.batch_bytes = move->batch_bytes ? move->batch_bytes : BATCH_BYTES_MIN;
	moving.polled_us = now_us();
	cursor_init(&moving.cursor, move->extents, move->n_extents, threads);
	workers = pf_crew_run(threads, move->cpus, move_work, &moving,
			      poll_now, &moving, move->poll_us);
	if (workers > (int)move->workers)
		move->workers = (uint32_t)workers;
	count_rest(&moving);
	move->batch_bytes = moving.batch_bytes;
	cursor_destroy(&moving.cursor);
	if (workers < 0)
		return workers;
	if (move->error)
		return -move->error;
	return move->cancel ? -ECANCELED : 0;
}
