// SPDX-License-Identifier: Apache-2.0
/*
 * The user engine: pieces of a range, dealt to workers that each take one away,
 * copy it, and put it back, independently of each other.
 */
#include <errno.h>
#include <pthread.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "crew.h"
#include "pace.h"
#include "pages.h"
#include "pool.h"
#include "populate.h"
#include "stalls.h"
#include "user_engine.h"
#include "userfault.h"

enum {
	MPOL_DEFAULT = 0,
	MPOL_PREFERRED = 1,
	MPOL_F_ADDR = 2,
	NODE_BITS = PF_MAX_NODES,
	NODE_LONGS = NODE_BITS / (8 * sizeof(unsigned long)) + 1,
	SAMPLE_STRIDE = 64,
	PIECE_PAGES = PIECE_BYTES_MAX >> 12,
	STALL_US = 20000,
};

#define PIECE_BYTES_MIN (64ull << 10)
#define PIECE_BYTES_FIRST (2ull << 20)

/* The memory policy of a thread. */
struct policy {
	unsigned long mask[NODE_LONGS];
	int mode;
	bool known;
};

struct worker {
	struct lane lane;
	struct policy before;
	uint64_t addresses[PIECE_PAGES];
	int32_t nodes[PIECE_PAGES];	/* before the move */
	int32_t answers[PIECE_PAGES];	/* after it */
	bool incomplete;	/* a part of the piece was left, or is gone */
};

/* One call of pf_user_run(), in a mapping of its own. */
struct running {
	struct pf_user *user;
	struct cursor cursor;
	uint64_t piece_bytes;	/* adapted by all workers, the last one wins */
	uint64_t polled_us;	/* worker 0 only */
	uint64_t bytes;		/* of this mapping */
	uint32_t features;
	uint32_t base_shift;
	uint32_t threads;
	int without_caller;	/* worker 0 could not take part: errno */
	uint32_t held;		/* by a pause: there may be more to do */
	uint32_t full;		/* the target has no pages of this size any more */
	uint32_t copy_method;	/* user itself may be in the piece that is away */
	struct worker workers[];
};

/* What a worker is at. */
struct task {
	struct running *running;
	struct worker *worker;
	uint64_t address;
	uint64_t bytes;
	uint32_t shift;
	uint32_t kind;
	int32_t source;		/* node of all pages, or -1: not known */
	bool is_caller;
};

static void add(uint64_t *counter, uint64_t count)
{
	__atomic_fetch_add(counter, count, __ATOMIC_RELAXED);
}

static bool stopped(const struct running *running)
{
	return __atomic_load_n(&running->user->cancel, __ATOMIC_RELAXED);
}

/* Whether a worker goes on; one that does not for a pause comes back after it. */
static bool go_on(struct running *running)
{
	if (stopped(running))
		return false;
	if (!pace_paused(&running->user->pause))
		return true;
	__atomic_store_n(&running->held, 1, __ATOMIC_RELAXED);
	return false;
}

static int poll_now(void *arg)
{
	struct running *running = arg;
	struct pf_user *user = running->user;

	running->polled_us = now_us();
	if (user->poll && !__atomic_load_n(&user->cancel, __ATOMIC_RELAXED) &&
	    user->poll(user->poll_arg))
		__atomic_store_n(&user->cancel, 1, __ATOMIC_RELAXED);
	return 0;
}

/* ---- What the kernel offers -------------------------------------------------------- */

static bool has_remap(void)
{
	long page = sysconf(_SC_PAGESIZE);
	void *memory = mmap(NULL, (size_t)page, PROT_READ | PROT_WRITE,
			    MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	void *moved;

	if (memory == MAP_FAILED)
		return false;
	/* The kernel looks at the address also without MREMAP_FIXED. */
	moved = mremap(memory, (size_t)page, (size_t)page, MREMAP_MAYMOVE | MREMAP_DONTUNMAP, NULL);
	munmap(memory, (size_t)page);
	if (moved == MAP_FAILED)
		return false;
	munmap(moved, (size_t)page);
	return true;
}

/* The kernel looks at the advice first; none is given for no memory. */
static bool has_collapse(void)
{
	return !madvise(NULL, 0, MADV_COLLAPSE);
}

int64_t pf_user_features(void)
{
	uint64_t offered = 0;
	int error = userfault_probe(&offered);
	int64_t features = PF_USER_HAS_FAULTS;

	if (error)
		return error;
	if (offered & UFFD_FEATURE_MOVE)
		features |= PF_USER_HAS_MOVE;
	if ((offered & UFFD_FEATURE_EVENT_REMAP) && (offered & UFFD_FEATURE_EVENT_REMOVE))
		features |= PF_USER_HAS_EVENTS;
	if (offered & UFFD_FEATURE_PAGEFAULT_FLAG_WP)
		features |= PF_USER_HAS_PROTECT;
	if (offered & UFFD_FEATURE_WP_UNPOPULATED)
		features |= PF_USER_HAS_PROTECT_ABSENT;
	if (has_remap())
		features |= PF_USER_HAS_REMAP;
	if (has_collapse())
		features |= PF_USER_HAS_COLLAPSE;
	return features;
}

static uint32_t needed(uint32_t way)
{
	switch (way) {
	case PF_USER_CHECKED:
		return PF_USER_HAS_MOVE | PF_USER_HAS_EVENTS;
	case PF_USER_HOLD:
		return PF_USER_HAS_REMAP;
	default:
		return PF_USER_HAS_REMAP | PF_USER_HAS_PROTECT;
	}
}

/* ---- Memory policy: UFFDIO_COPY takes pages where the thread prefers them ----------- */

static void prefer_target(struct policy *before, int32_t node)
{
	unsigned long mask[NODE_LONGS] = { 0 };
	const int bits = 8 * sizeof(unsigned long);

	before->known = !syscall(SYS_get_mempolicy, &before->mode, before->mask,
				 (unsigned long)NODE_BITS + 1, NULL, 0ul);
	if (!before->known)
		return;
	mask[node / bits] = 1ul << node % bits;
	if (syscall(SYS_set_mempolicy, MPOL_PREFERRED, mask, (unsigned long)NODE_BITS + 1))
		before->known = false;
}

static void prefer_as_before(const struct policy *before)
{
	if (before->known)
		syscall(SYS_set_mempolicy, before->mode,
			before->mode == MPOL_DEFAULT ? NULL : before->mask,
			(unsigned long)NODE_BITS + 1);
}

/* A policy of the mapping itself would overrule the thread's. */
static bool thread_decides(uint64_t address)
{
	int mode = -1;

	return !syscall(SYS_get_mempolicy, &mode, NULL, 0ul, address, (unsigned long)MPOL_F_ADDR) &&
	       mode == MPOL_DEFAULT;
}

/* ---- Counting ------------------------------------------------------------------------- */

/*
 * For another engine; where the caller has no room for more, not tried. No lock:
 * a helper that is kept from its CPU must not keep the others from their work.
 */
static void leave_extent(struct pf_user *user, const struct pf_extent *extent, int error)
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

static void leave(const struct task *task, uint64_t address, uint64_t bytes, int error)
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

static void note_stall(struct running *running, uint64_t bytes, uint64_t us)
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

/* ---- Where the pages of a piece are --------------------------------------------------- */

/* Write the nodes of every stride-th page and the last one. Their number, 0: not known. */
static uint64_t ask(const struct task *task, uint64_t stride, int32_t *nodes)
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

/*
 * After UFFDIO_COPY: has the target really had room? What could not be taken
 * is where it was, and none of these pages.
 */
static uint64_t bytes_astray(const struct task *task)
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

/* ---- Pages to copy into ------------------------------------------------------------------ */

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
		munmap((void *)(uintptr_t)fresh->at.map, fresh->at.map_bytes);
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

static void move_piece(const struct task *task)
{
	struct pf_user *user = task->running->user;
	struct lane *lane = &task->worker->lane;
	struct fresh fresh;
	uint64_t us;
	int error = find_fresh(task, &fresh);

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
			munmap((void *)(uintptr_t)fresh.at.map, fresh.at.map_bytes);
	}
}

/* ---- Which parts of a piece have to move ----------------------------------------------------- */

static void count_already(const struct task *task, uint64_t pages)
{
	struct pf_user_progress *p = &task->running->user->progress;

	add(&p->bytes_already, pages << task->shift);
	add(&p->pages_already[task->kind < PF_PAGE_KINDS ? task->kind : 0], pages);
}

/* As the kernel engine: ask for one base page in 64, and for all if one of them is there. */
static bool asked_all(struct task *task)
{
	const struct pf_user *user = task->running->user;
	int32_t *nodes = task->worker->nodes;
	uint64_t pages = task->bytes >> task->shift;
	uint64_t count, i;

	if (task->shift == task->running->base_shift && !(user->flags & PF_USER_EXACT) &&
	    pages > 2 * SAMPLE_STRIDE) {
		if (user->flags & PF_USER_AGAIN)
			return false;
		count = ask(task, SAMPLE_STRIDE, nodes);
		for (i = 0; i < count; i++)
			if (nodes[i] == user->target)
				break;
		if (i == count) {
			add(&task->running->user->progress.pages_unsampled, pages);
			return false;
		}
	}
	return ask(task, 1, nodes) > 0;
}

/* Move what is elsewhere. Returns the bytes that were there already. */
static uint64_t move_astray(const struct task *whole)
{
	const struct pf_user *user = whole->running->user;
	const int32_t *nodes = whole->worker->nodes;
	struct task task = *whole;
	uint64_t pages = task.bytes >> task.shift;
	bool again = user->flags & PF_USER_AGAIN;
	uint64_t already = 0;
	uint64_t i, end;

	task.source = -1;
	if (!asked_all(&task)) {
		move_piece(&task);
		return 0;
	}
	for (i = 0; i < pages; i = end) {
		bool there = nodes[i] == user->target && !again;
		bool same = true;

		for (end = i + 1; end < pages; end++) {
			if ((nodes[end] == user->target && !again) != there)
				break;
			same = same && nodes[end] == nodes[i];
		}
		if (there) {
			count_already(&task, end - i);
			already += (end - i) << task.shift;
			continue;
		}
		task.address = whole->address + (i << task.shift);
		task.bytes = (end - i) << task.shift;
		task.source = same && nodes[i] >= 0 ? nodes[i] : -1;
		move_piece(&task);
	}
	return already;
}

/* Huge pages of a piece that is on the target whole. */
static void make_huge(const struct task *task, uint64_t already)
{
	struct pf_user_progress *p = &task->running->user->progress;
	uint64_t huge;

	if (task->worker->incomplete) {
		add(&p->uncollapsed[0], task->bytes);
		return;
	}
	huge = collapse(task->address, task->bytes, p);
	/* Where some were there and some were not, either is true of the huge page. */
	if (already && already < task->bytes)
		return;
	add((already ? p->pages_already : p->pages_moved) + PF_PAGE_BASE, -(huge >> task->shift));
	add((already ? p->pages_already : p->pages_moved) + PF_PAGE_THP, huge / HUGE_BYTES);
}

static void attend(const struct task *task)
{
	const struct running *running = task->running;
	uint64_t already;

	if (engine_runs_on(task->address, task->bytes)) {
		leave(task, task->address, task->bytes, EDEADLK);
		return;
	}
	task->worker->incomplete = false;
	already = move_astray(task);
	if (task->shift == running->base_shift && running->user->page_shift > task->shift)
		make_huge(task, already);
}

/* ---- Workers ------------------------------------------------------------------------------------ */

/* How many adjacent pages of one size from this one on are the next piece, described in task. */
static uint64_t piece_pages(const struct running *running, uint64_t at, struct task *task)
{
	const struct cursor *cursor = &running->cursor;
	uint64_t index = cursor_extent(cursor, at);
	const struct pf_extent *extent = &cursor->extents[index];
	uint64_t page = at - cursor->pages_before[index];
	uint64_t bytes = rate_piece(__atomic_load_n(&running->user->max_rate, __ATOMIC_RELAXED),
				    __atomic_load_n(&running->piece_bytes, __ATOMIC_RELAXED));
	uint64_t share = cursor_bytes_from(cursor, at) / (2 * (uint64_t)running->threads);
	uint64_t least = cursor_bytes_from(cursor, 0) / (2 * (uint64_t)running->threads);
	uint64_t end, pages;

	/* Only whole page tables come from the pool. */
	least = least < HUGE_BYTES ? PIECE_BYTES_MIN : HUGE_BYTES;
	if (bytes > share)	/* so that all end together */
		bytes = share > least ? share : least;
	if (running->user->page_shift > extent->shift && bytes < HUGE_BYTES)
		bytes = HUGE_BYTES;
	task->address = extent->start + (page << extent->shift);
	end = task->address + bytes;
	/* Page tables that go over whole are cheaper than page after page. */
	if (end / HUGE_BYTES > task->address / HUGE_BYTES)
		end -= end % HUGE_BYTES;
	pages = (end - task->address) >> extent->shift;
	if (!pages)
		pages = 1;
	if (pages > extent->pages - page)
		pages = extent->pages - page;
	task->bytes = pages << extent->shift;
	task->shift = extent->shift;
	task->kind = extent->kind;
	return pages;
}

/* The next piece, without a lock; see struct cursor. False: there is none left. */
static bool claim(struct running *running, struct task *task)
{
	struct cursor *cursor = &running->cursor;
	uint64_t at = __atomic_load_n(&cursor->next, __ATOMIC_RELAXED);
	uint64_t pages;

	do {
		if (at >= cursor->pages)
			return false;
		pages = piece_pages(running, at, task);
	} while (!__atomic_compare_exchange_n(&cursor->next, &at, at + pages, false,
					      __ATOMIC_RELAXED, __ATOMIC_RELAXED));
	return true;
}

static void poll_if_due(struct running *running, uint32_t number)
{
	const struct pf_user *user = running->user;

	if (!number && user->poll && user->poll_us &&
	    now_us() - running->polled_us >= user->poll_us)
		poll_now(running);
}

static void work_on(struct running *running, uint32_t number)
{
	struct pf_user *user = running->user;
	uint64_t until, rate;
	struct task task = {
		.running = running,
		.worker = &running->workers[number],
		.is_caller = number == 0,
	};

	while (go_on(running) && crew_go_on() && claim(running, &task)) {
		rate = __atomic_load_n(&user->max_rate, __ATOMIC_RELAXED);
		if (task.bytes > PIECE_BYTES_MAX)	/* a page larger than a piece may be */
			leave(&task, task.address, task.bytes, EINVAL);
		else
			attend(&task);
		until = __atomic_load_n(&user->due_us, __ATOMIC_RELAXED);
		do
			poll_if_due(running, number);
		while (rate && !stopped(running) && pace_sleep(until) &&
		       rate == __atomic_load_n(&user->max_rate, __ATOMIC_RELAXED));
	}
}

static void user_work(void *arg, uint32_t number)
{
	struct running *running = arg;
	struct worker *worker = &running->workers[number];
	struct lane *lane = &worker->lane;
	int error;

	lane->block = (uintptr_t)running;
	lane->block_bytes = running->bytes;
	error = engine_join(lane, running->user->way, running->features);
	if (!error) {
		prefer_target(&worker->before, running->user->target);
		work_on(running, number);
		prefer_as_before(&worker->before);
		engine_leave(lane);
	}
	if (error && number == 0)	/* the others can do without this one, as far as they come */
		running->without_caller = -error;
}

/* All workers, again after each pause. Returns the most that there were, or -errno. */
static int work_together(struct running *running)
{
	struct pf_user *user = running->user;
	int workers, most = 0;

	do {
		while (!stopped(running) && pace_paused(&user->pause)) {
			poll_if_due(running, 0);
			pace_nap();
		}
		running->held = 0;
		workers = pf_crew_run(user->threads, user->cpus, user_work, running, poll_now,
				      running, user->poll_us);
		if (workers > most)
			most = workers;
	} while (workers > 0 && running->held && !running->without_caller && !stopped(running));
	return workers < 0 ? workers : most;
}

/* For another engine, all from this page of the list on. */
static void leave_from(struct pf_user *user, const struct cursor *cursor, uint64_t page, int error)
{
	uint64_t i = cursor_extent(cursor, page);

	page -= cursor->n_extents ? cursor->pages_before[i] : 0;
	for (; i < cursor->n_extents; i++, page = 0) {
		struct pf_extent rest = cursor->extents[i];

		rest.start += page << rest.shift;
		rest.pages -= page;
		if (rest.pages)
			leave_extent(user, &rest, error);
	}
}

/* Nothing was tried. Returns the error. */
static int refuse(struct pf_user *user, int error)
{
	uint64_t i;

	user->n_left = 0;
	for (i = 0; i < user->n_extents; i++)
		user->progress.bytes_skipped += user->extents[i].pages << user->extents[i].shift;
	return error;
}

static void leave_all(struct pf_user *user, int error)
{
	uint64_t i;

	for (i = 0; i < user->n_extents; i++)
		leave_extent(user, &user->extents[i], error);
	if (user->n_left > user->max_left)
		user->n_left = user->max_left;
}

static int run(struct pf_user *user)
{
	uint64_t page = (uint64_t)sysconf(_SC_PAGESIZE);
	uint32_t base_shift = base_page_shift();
	int64_t features = pf_user_features();
	struct running *running;
	uint64_t bytes;
	int workers;

	if (features == -EPERM || features == -ENOSYS)
		return refuse(user, (int)features);
	if (!user->threads || user->threads > PF_MAX_THREADS || user->target < 0 ||
	    user->target >= PF_MAX_NODES || user->way < PF_USER_CHECKED ||
	    user->way > PF_USER_PROTECT ||
	    (user->page_shift && user->page_shift != base_shift && user->page_shift != HUGE_SHIFT))
		return -EINVAL;
	user->n_left = 0;
	if (features < 0) {	/* for want of a file, or of memory: not for good */
		leave_all(user, -(int)features);
		return 0;
	}
	if ((needed(user->way) | (user->page_shift > base_shift ? PF_USER_HAS_COLLAPSE : 0)) &
	    ~(uint32_t)features)
		return refuse(user, -EOPNOTSUPP);
	bytes = sizeof(*running) + user->threads * sizeof(struct worker);
	bytes = (bytes + page - 1) & ~(page - 1);
	running = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (running == MAP_FAILED) {
		leave_all(user, ENOMEM);
		return 0;
	}
	if (cursor_init(&running->cursor, user->extents, user->n_extents, user->threads)) {
		munmap(running, bytes);
		leave_all(user, ENOMEM);
		return 0;
	}
	running->user = user;
	running->bytes = bytes;
	running->features = (uint32_t)features;
	running->base_shift = base_shift;
	running->threads = user->threads;
	running->copy_method = user->copy_method;
	running->piece_bytes = user->piece_bytes ? user->piece_bytes : PIECE_BYTES_FIRST;
	if (running->piece_bytes > PIECE_BYTES_MAX)
		running->piece_bytes = PIECE_BYTES_MAX;
	running->polled_us = now_us();
	workers = work_together(running);
	if (workers > (int)user->workers)
		user->workers = (uint32_t)workers;
	if (running->without_caller && workers > 0 && !stopped(running) &&
	    cursor_left(&running->cursor))
		leave_from(user, &running->cursor, running->cursor.next, running->without_caller);
	else
		user->progress.bytes_skipped += cursor_left(&running->cursor);
	if (user->n_left > user->max_left)
		user->n_left = user->max_left;
	user->piece_bytes = running->piece_bytes;
	cursor_destroy(&running->cursor);
	munmap(running, bytes);
	if (workers < 0)
		return workers;
	return user->cancel ? -ECANCELED : 0;
}

int pf_user_run(struct pf_user *user)
{
	int cancelling, result;

	/* Nobody may end this thread while it holds a piece, or helpers work for it. */
	pthread_setcancelstate(PTHREAD_CANCEL_DISABLE, &cancelling);
	result = run(user);
	pthread_setcancelstate(cancelling, NULL);
	return result;
}
