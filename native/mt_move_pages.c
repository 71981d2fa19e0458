// SPDX-License-Identifier: Apache-2.0
/*
 * move_pages(2) by several threads, with the answer that the kernel would give:
 * the caller's list is cut into pieces (mt_pieces.c), each of which is moved by a
 * call of its own, and the answer is made of theirs (mt_answer.c). For that each
 * piece is asked for its nodes first.
 */
#include <errno.h>

#include "calls.h"
#include "crew.h"
#include "mt_move_pages.h"
#include "pages.h"

enum { FEWEST_PAGES = 8 };

/* Less is not worth waking a thread for; in bytes of address space. */
#define FEWEST_BYTES (4ull << 20)
#define MOST_PAGES (1ull << 28)

static bool stopped(const struct mt_call *call)
{
	return __atomic_load_n(&call->failed, __ATOMIC_RELAXED) &&
	       __atomic_load_n(&call->grouped, __ATOMIC_RELAXED);
}

static void mark(uint32_t *what)
{
	__atomic_store_n(what, 1, __ATOMIC_RELAXED);
}

static void move_piece(struct mt_call *call, struct mt_piece *piece, int32_t *status)
{
	int16_t *before = call->before + piece->first;
	int16_t *after = call->after + piece->first;
	const uint64_t *pages = call->pages + piece->first;
	bool grouped = false;
	uint64_t i;

	piece->tried = true;
	piece->unwritten = 0;
	piece->result = raw_move_pages(call->pid, piece->count, pages, NULL, status, 0);
	for (i = 0; i < piece->count; i++) {
		before[i] = (int16_t)(piece->result ? -EFAULT : status[i]);
		after[i] = UNWRITTEN;
		status[i] = PF_STATUS_UNKNOWN;
	}
	if (!piece->result)
		piece->result = raw_move_pages(call->pid, piece->count, pages,
					       call->nodes + piece->first, status,
					       call->flags);
	for (i = 0; i < piece->count && status[i] != PF_STATUS_UNKNOWN; i++)
		;
	piece->unwritten = i;
	for (i = 0; i < piece->count; i++) {
		if (status[i] == PF_STATUS_UNKNOWN)
			continue;
		after[i] = (int16_t)status[i];
		grouped |= after[i] < 0 || after[i] == before[i];
	}
	if (piece->result)
		mark(&call->failed);
	if (grouped || piece->result < 0)
		mark(&call->grouped);
}

static void move_work(void *arg, uint32_t worker)
{
	struct mt_call *call = arg;

	while (!stopped(call) && crew_go_on()) {
		uint32_t at = __atomic_fetch_add(&call->next, 1, __ATOMIC_RELAXED);

		if (at >= call->n_pieces)
			break;
		move_piece(call, &call->pieces[at], call->scratch + worker * call->longest);
	}
}

/* The bytes of the pages that moved, which are those with a status. */
static uint64_t bytes_listed(const struct mt_call *call)
{
	struct mt_listing listing = { .pagemap = open_proc(call->pid, "pagemap") };
	uint64_t bytes = 0, done, i, n;

	for (done = 0; done < call->count; done += n) {
		n = call->count - done < CHUNK ? call->count - done : CHUNK;
		if (user_read(call->desk->pages, call->pages + done, n * 8))
			break;
		for (i = 0; i < n; i++)
			if (call->after[done + i] >= 0)
				bytes += mt_bytes_at(&listing, call->desk->pages[i]);
	}
	if (listing.pagemap >= 0)
		raw_call(SYS_close, listing.pagemap, 0, 0, 0, 0, 0);
	return bytes;
}

static void count_call(struct pf_mt *mt, const struct mt_call *call, uint64_t begun_us,
		       uint32_t workers)
{
	uint64_t pages = 0, i;

	/* No status was written of the only group, most of which moved. */
	for (i = 0; call->failed && !call->grouped && i < call->count; i++)
		call->after[i] = INT16_MAX;
	for (i = 0; i < call->count; i++) {
		if (call->after[i] >= 0 && call->after[i] != call->before[i])
			pages++;
		else
			call->after[i] = UNWRITTEN;
	}
	mt_count(mt, begun_us, pages, mt->measure ? bytes_listed(call) : 0, workers);
}

static int64_t run(struct pf_mt *mt, struct mt_call *call, uint32_t threads)
{
	uint64_t begun = now_us();
	int64_t result;
	int workers;

	workers = pf_crew_run(threads, mt->cpus, move_work, call, NULL, NULL, 0);
	if (workers < 0)
		return workers;
	result = answer_call(mt, call);
	count_call(mt, call, begun, (uint32_t)workers);
	return result;
}

/* Cut, get memory, run. False: the kernel is to have the call as it is. */
static bool in_parallel(struct pf_mt *mt, struct mt_call *call, int64_t *result)
{
	uint64_t each = bytes_each(call);
	uint64_t threads = mt->threads;
	uint64_t bytes, lists;
	void *memory;
	bool done = false;

	if (each * call->count < FEWEST_BYTES)
		return false;
	call->desk = map_memory(sizeof(*call->desk));
	if (!call->desk)
		return false;
	call->pieces = call->desk->pieces;
	if (!cut_list(call, each, threads) || probe_statuses(call))
		goto out;
	call->grouped = !one_target(call);
	if (threads > call->n_pieces)
		threads = call->n_pieces;
	lists = call->count * sizeof(*call->before);
	bytes = 2 * lists + threads * call->longest * sizeof(*call->scratch) + 8;
	memory = map_memory(bytes);
	if (!memory)
		goto out;
	call->scratch = memory;
	call->before = (int16_t *)(call->scratch + threads * call->longest);
	call->after = call->before + call->count;
	*result = run(mt, call, (uint32_t)threads);
	unmap_memory(memory, bytes);
	done = true;
out:
	unmap_memory(call->desk, sizeof(*call->desk));
	return done;
}

int64_t pf_mt_move_pages(struct pf_mt *mt, int32_t pid, uint64_t count,
			 const uint64_t *pages, const int32_t *nodes, int32_t *status,
			 int32_t flags)
{
	struct mt_call call = {
		.pid = pid, .flags = (int32_t)mt_plain_flags((uint32_t)flags), .count = count,
		.pages = pages, .nodes = nodes, .status = status,
	};
	int64_t result;

	if (mt->threads > 1 && mt->threads <= PF_MAX_THREADS && nodes && pages && status &&
	    count >= FEWEST_PAGES && count <= MOST_PAGES && !(call.flags & ~(MOVE | MOVE_ALL)) &&
	    in_parallel(mt, &call, &result))
		return result;
	return mt_passed(mt, raw_move_pages(pid, count, pages, nodes, status, call.flags));
}
