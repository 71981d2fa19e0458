// SPDX-License-Identifier: Apache-2.0
/*
 * The user engine: pieces of a range, dealt to workers that each take one away,
 * copy it, and put it back (user_move.c), independently of each other.
 */
#include <errno.h>
#include <pthread.h>
#include <sys/mman.h>
#include <unistd.h>

#include "calls.h"
#include "crew.h"
#include "pace.h"
#include "populate.h"
#include "user_run.h"

#define PIECE_BYTES_FIRST (2ull << 20)

static bool stopped(const struct running *running)
{
	return __atomic_load_n(&running->user->cancel, __ATOMIC_RELAXED);
}

/*
 * Whether a worker goes on after so many pieces; all come back after a pause, and
 * when helpers are missed. One that saw a pause tells the others, for whom it may
 * have been too short: without it they would be fewer for the rest.
 */
static bool go_on(struct running *running, uint32_t number, uint64_t pieces)
{
	if (stopped(running) || !crew_go_on())
		return false;
	if (!__atomic_load_n(&running->held, __ATOMIC_RELAXED) &&
	    !pace_paused(&running->user->pause) &&
	    (number || !pieces || !crew_call_again(cursor_left(&running->cursor))))
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
	uint64_t until, rate, pieces = 0;
	struct task task = {
		.running = running,
		.worker = &running->workers[number],
	};

	while (go_on(running, number, pieces++) && claim(running, &task)) {
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
	int error, lost;

	if (!crew_go_on())	/* others need the CPU: not even to join */
		return;
	lane->block = (uintptr_t)running;
	lane->block_bytes = running->bytes;
	error = engine_join(lane, running->user->way, running->features);
	if (!error) {
		prefer_target(&worker->before, running->user->target);
		work_on(running, number);
		lost = prefer_as_before(&worker->before);
		if (lost && number == 0)	/* a helper's is nobody's concern */
			running->user->policy_lost = (uint32_t)-lost;
		engine_leave(lane);
	}
	if (error && number == 0)	/* the others can do without this one, as far as they come */
		running->without_caller = -error;
}

/*
 * All workers, again after each pause, and when helpers had left. Returns the most
 * that there were, or -errno.
 */
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
	    user->way > PF_USER_PROTECT || pf_copy_choose(1, user->copy_method) < 0 ||
	    (user->page_shift && user->page_shift != base_shift && user->page_shift != HUGE_SHIFT))
		return -EINVAL;
	user->n_left = 0;
	if (features < 0) {	/* for want of a file, or of memory: not for good */
		leave_all(user, -(int)features);
		return 0;
	}
	if ((user_needs(user->way) | (user->page_shift > base_shift ? PF_USER_HAS_COLLAPSE : 0)) &
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
		unmap_memory(running, bytes);
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
	unmap_memory(running, bytes);
	if (workers < 0)
		return workers;
	return user->cancel ? -ECANCELED : 0;
}

int pf_user_run(struct pf_user *user)
{
	uint64_t begun = now_us();
	int cancelling, result;

	/* Nobody may end this thread while it holds a piece, or helpers work for it. */
	pthread_setcancelstate(PTHREAD_CANCEL_DISABLE, &cancelling);
	result = run(user);
	user->run_us += now_us() - begun;
	pthread_setcancelstate(cancelling, NULL);
	return result;
}
