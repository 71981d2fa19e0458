// SPDX-License-Identifier: Apache-2.0
/*
 * One piece of memory: find pages to copy into, take the old ones away, copy,
 * put the new ones in, part with the old ones.
 */
#include <errno.h>
#include <sys/mman.h>

#include "calls.h"
#include "pace.h"
#include "pool.h"
#include "populate.h"
#include "user_run.h"

struct fresh {
	struct apart at;	/* start 0: UFFDIO_COPY makes them */
	bool pooled;
	uint32_t shift;
};

/* Page tables of its own, as map_apart() has them, or nothing. */
static void *from_pool(const struct task *task, uint32_t shift)
{
	int32_t node = task->running->user->target;
	void *memory;

	if (task->bytes % HUGE_BYTES)
		return NULL;
	memory = pool_take(node, shift, task->bytes);
	if (memory && (uintptr_t)memory % HUGE_BYTES) {
		pool_give(node, shift, memory, task->bytes);
		return NULL;
	}
	return memory;
}

/* 0 or -errno. */
static int find_fresh(const struct task *task, struct fresh *fresh)
{
	const struct running *running = task->running;
	const struct pf_user *user = running->user;
	int error;

	/* Base pages that are to be huge ones are so later: see user_collapse.c. */
	*fresh = (struct fresh){
		.shift = user->page_shift == running->base_shift ? user->page_shift : task->shift,
	};
	if (fresh->shift == running->base_shift && (user->flags & PF_USER_FILL) &&
	    thread_decides(task->address))
		return 0;
	if (!(running->features & PF_USER_HAS_MOVE))
		return fresh->shift == running->base_shift && thread_decides(task->address) ?
			0 : -EOPNOTSUPP;
	fresh->at.start = (uintptr_t)from_pool(task, fresh->shift);
	fresh->at.map = fresh->at.start;
	fresh->at.map_bytes = task->bytes;
	fresh->pooled = fresh->at.start != 0;
	if (fresh->pooled)
		return 0;
	if (__atomic_load_n(&running->full, __ATOMIC_RELAXED))
		return -ENOMEM;
	if (fresh->shift == running->base_shift && user->way != PF_USER_PROTECT &&
	    !(user->flags & PF_USER_NO_FILL) && thread_decides(task->address))
		return 0;
	error = map_apart(task->bytes, 0, &fresh->at);
	if (error)
		return error;
	error = pf_populate(fresh->at.start, task->bytes, user->target, fresh->shift, 0, 1, NULL);
	if (error < 0) {
		unmap_memory((void *)(uintptr_t)fresh->at.map, fresh->at.map_bytes);
		return error;
	}
	return 0;
}


/* ---- One piece ---------------------------------------------------------------------------- */

static void copy_span(const struct task *task, uint64_t to, uint64_t from, const struct span *span)
{
	pf_copy_pages((void *)(uintptr_t)(to + span->offset),
		      (const void *)(uintptr_t)(from + span->offset), span->bytes,
		      task->running->copy_method);
}

/* Between the first and the last line nothing may block on anything but the kernel. */
static int pass(const struct task *task, const struct fresh *fresh, uint64_t *us)
{
	struct lane *lane = &task->worker->lane;
	struct piece *piece = &lane->piece;
	struct span all = { .bytes = task->bytes };
	sigset_t before;
	uint64_t begun;
	uint32_t i;
	int error;

	engine_enter(&before);
	begun = now_us();
	error = piece_begin(lane, task->address, task->bytes, task->shift);
	if (!error) {
		if (lane->way == PF_USER_PROTECT && fresh->at.start)
			copy_span(task, fresh->at.start, task->address, &all);
		piece_take(lane);
		if (!fresh->at.start) {
			error = piece_fill(lane);
		} else {
			for (i = 0; i < piece->n_spans && lane->way != PF_USER_PROTECT; i++)
				copy_span(task, fresh->at.start, piece->side.start, &piece->spans[i]);
			piece_put(lane, fresh->at.start);
		}
		piece_end(lane);
	} else {
		piece->n_spans = 0;
	}
	*us = now_us() - begun;
	engine_exit(&before);
	return error;
}

/* Old pages whose node is known, and all there, can serve the next one. */
static void part_with_old(const struct task *task)
{
	struct piece *piece = &task->worker->lane.piece;

	/*
	 * A mapping that came by mremap() has whatever flags the piece has, and
	 * a part of a page table is of no use: see from_pool().
	 */
	if (task->source < 0 || task->running->user->way != PF_USER_CHECKED ||
	    (piece->address | piece->bytes) % HUGE_BYTES || piece->n_spans != 1 ||
	    piece->spans[0].bytes != piece->bytes ||
	    piece->bytes_put != piece->bytes) {
		piece_free(&task->worker->lane);
		return;
	}
	piece_give(&task->worker->lane, task->source);
}

static void count_piece(const struct task *task, const struct fresh *fresh)
{
	struct pf_user_progress *p = &task->running->user->progress;
	const struct piece *piece = &task->worker->lane.piece;
	uint64_t astray = fresh->at.start ? 0 : bytes_astray(task);
	uint64_t moved = piece->bytes_put > astray ? piece->bytes_put - astray : 0;
	uint64_t size = 1ull << fresh->shift;
	uint32_t i;

	add(&p->bytes_moved, moved);
	add(&p->bytes_gone, piece->bytes_taken - piece->bytes_put);
	if (piece->bytes_taken > piece->bytes_put)
		task->worker->incomplete = true;
	add(&p->pages_moved[fresh->shift == task->running->base_shift ? PF_PAGE_BASE : PF_PAGE_THP],
	    moved / size);
	add(fresh->at.start ? (fresh->pooled ? &p->bytes_pooled : &(uint64_t){ 0 }) : &p->bytes_filled,
	    moved);
	for (i = 0; i < piece->n_left; i++) {
		const struct span *span = &piece->left[i];

		task->worker->incomplete = true;
		if (span->error == ENOENT)
			add(&p->bytes_gone, span->bytes);
		else
			leave(task, task->address + span->offset, span->bytes, span->error);
	}
}

void move_piece(const struct task *task)
{
	struct pf_user *user = task->running->user;
	struct lane *lane = &task->worker->lane;
	struct fresh fresh;
	uint64_t us;
	int error;

	if (user->way != PF_USER_CHECKED && task->bytes == lane->page &&
	    !(task->running->features & PF_USER_HAS_MOVE)) {	/* see take_by_remap() */
		leave(task, task->address, task->bytes, EOPNOTSUPP);
		return;
	}
	error = find_fresh(task, &fresh);
	if (error) {
		if (error == -ENOMEM)
			__atomic_store_n(&task->running->full, 1, __ATOMIC_RELAXED);
		leave(task, task->address, task->bytes, -error);
		return;
	}
	rate_reserve(__atomic_load_n(&user->max_rate, __ATOMIC_RELAXED), &user->due_us,
		     task->bytes);
	error = pass(task, &fresh, &us);
	if (error == -ENOMEM && lane->piece.n_spans)
		__atomic_store_n(&task->running->full, 1, __ATOMIC_RELAXED);
	if (!error) {
		note_stall(task->running, task->bytes, us);
		count_piece(task, &fresh);
	} else {
		leave(task, task->address, task->bytes, -error);
	}
	if (!error && lane->piece.n_spans)
		part_with_old(task);
	else if (!error || lane->piece.n_spans)
		piece_free(lane);
	if (fresh.at.start) {
		if (fresh.pooled && !lane->piece.n_spans)
			pool_give(task->running->user->target, fresh.shift,
				  (void *)(uintptr_t)fresh.at.start, task->bytes);
		else
			unmap_memory((void *)(uintptr_t)fresh.at.map, fresh.at.map_bytes);
	}
}
