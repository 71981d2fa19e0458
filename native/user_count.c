// SPDX-License-Identifier: Apache-2.0
/* What became of the pages of a move, and for how long pieces were away. */
#include <errno.h>

#include "stalls.h"
#include "user_run.h"

enum { STALL_US = 20000 };

/* No lock: a helper that is kept from its CPU must not keep the others from their work. */
void leave_extent(struct pf_user *user, const struct pf_extent *extent, int error)
{
	uint64_t bytes = extent->pages << extent->shift;
	uint64_t i = __atomic_fetch_add(&user->n_left, 1, __ATOMIC_RELAXED);

	if (i >= user->max_left) {
		add(&user->progress.bytes_skipped, bytes);
		return;
	}
	add(&user->progress.bytes_left, bytes);
	add(&user->progress.left[error < PF_MAX_ERRNO ? error : 0], bytes);
	user->left[i] = *extent;
}

void leave(const struct task *task, uint64_t address, uint64_t bytes, int error)
{
	/* A huge page that was left in part has been split by the kernel. */
	bool whole = !((address | bytes) & ((1ull << task->shift) - 1));
	uint32_t shift = whole ? task->shift : task->running->base_shift;
	const struct pf_extent extent = {
		.start = address, .pages = bytes >> shift, .shift = shift,
		.kind = whole ? task->kind : (uint32_t)PF_PAGE_BASE,
	};

	task->worker->incomplete = true;
	leave_extent(task->running->user, &extent, error);
}

void note_stall(struct running *running, uint64_t bytes, uint64_t us)
{
	struct pf_user *user = running->user;
	uint64_t now = __atomic_load_n(&running->piece_bytes, __ATOMIC_RELAXED);
	uint64_t limit = user->stall_us ? user->stall_us : STALL_US;

	add(&user->progress.pieces, 1);
	stall_note(user->progress.stalls, &user->progress.stall_us_max, us);
	/* A margin: the next one may meet a busy CPU. */
	if (us * 2 > limit && bytes <= now)
		now = bytes / 2;
	else if (us * 8 < limit && bytes >= now)
		now = bytes * 2;
	else
		return;
	if (now < PIECE_BYTES_MIN)
		now = PIECE_BYTES_MIN;
	if (now > PIECE_BYTES_MAX)
		now = PIECE_BYTES_MAX;
	__atomic_store_n(&running->piece_bytes, now, __ATOMIC_RELAXED);
}

uint64_t ask(const struct task *task, uint64_t stride, int32_t *nodes)
{
	struct worker *worker = task->worker;
	uint64_t pages = task->bytes >> task->shift;
	uint64_t count = 0;
	uint64_t i;

	for (i = 0; i < pages; i += stride)
		worker->addresses[count++] = task->address + (i << task->shift);
	if (stride > 1)
		worker->addresses[count++] = task->address + ((pages - 1) << task->shift);
	return query_nodes(0, count, worker->addresses, nodes) ? 0 : count;
}

/* The pages of a span that are on another node are left; at most limit bytes. */
static uint64_t span_astray(const struct task *task, const struct span *span, uint64_t limit)
{
	struct worker *worker = task->worker;
	const int32_t *nodes = worker->answers;
	int32_t target = task->running->user->target;
	uint64_t size = 1ull << task->shift;
	struct task part = *task;
	uint64_t astray = 0;
	uint64_t count, i, end;

	part.address = task->address + span->offset;
	part.bytes = span->bytes;
	count = ask(&part, SAMPLE_STRIDE, worker->answers);
	for (i = 0; i < count; i++)
		if (nodes[i] >= 0 && nodes[i] != target)
			break;
	if (i == count)
		return 0;
	count = ask(&part, 1, worker->answers);
	for (i = 0; i < count && astray < limit; i = end) {
		uint64_t bytes = 0;

		for (end = i; end < count && nodes[end] >= 0 && nodes[end] != target &&
		     astray + bytes < limit; end++)
			bytes += size;
		if (bytes)
			leave(&part, worker->addresses[i], bytes, ENOMEM);
		else
			end++;
		astray += bytes;
	}
	return astray;
}

uint64_t bytes_astray(const struct task *task)
{
	const struct piece *piece = &task->worker->lane.piece;
	struct task base = *task;
	uint64_t astray = 0;
	uint32_t i;

	base.shift = task->running->base_shift;
	base.kind = PF_PAGE_BASE;
	for (i = 0; i < piece->n_spans; i++)
		astray += span_astray(&base, &piece->spans[i], piece->bytes_put - astray);
	if (astray)
		__atomic_store_n(&task->running->full, 1, __ATOMIC_RELAXED);
	return astray;
}
