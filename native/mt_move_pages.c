// SPDX-License-Identifier: Apache-2.0
/*
 * move_pages(2) by several threads, with the answer that the kernel would give.
 *
 * The kernel takes pages in the caller's order, in groups: a group ends where
 * the target changes and at each page that needs no move or cannot be queued.
 * It stops after the first group of which a page did not move, leaves the
 * statuses from that group on unwritten, and returns how many pages are not
 * moved (do_pages_move in mm/migrate.c).
 *
 * So the list is cut into pieces, each moved by a call of its own. As long as
 * all succeed, statuses and placement are what one call makes them, provided no
 * folio is in two pieces. When one fails:
 *  - if all pages of the list form one group, the kernel tries them all, and so
 *    do we: the failures of the pieces are added up, and no status is written;
 *  - if the piece holds all of its group that failed, its answer stands, and what
 *    later pieces moved goes back to where it was;
 *  - else what was moved from that group on goes back, and the kernel gets the
 *    rest of the list as it is.
 * To know groups and ways back, each piece is asked for its nodes first.
 */
#include <errno.h>

#include "calls.h"
#include "crew.h"
#include "mt_calls.h"
#include "pages.h"

enum {
	FEWEST_PAGES = 8,
	SMALLEST_SHARE = 48,	/* a piece, of the pages that are a worker's */
	MOST_PIECES = 2048,
	CHUNK = 4096,		/* entries of a caller's array looked at together */
	UNWRITTEN = INT16_MIN,
};

/* Less is not worth waking a thread for; in bytes of address space. */
#define FEWEST_BYTES (4ull << 20)
#define SMALLEST_PIECE (2ull << 20)
#define MOST_PAGES (1ull << 28)

struct piece {
	uint64_t first;		/* index of its first page */
	uint64_t count;
	uint64_t low;		/* lowest and highest 2 MiB block */
	uint64_t high;
	int64_t result;		/* of the call; not tried when first is beyond tried */
	uint64_t unwritten;	/* first page without a status, from the piece's first on */
	bool tried;
};

/* Room to look at callers' arrays; not on the stack, which may be a small one. */
struct desk {
	struct piece pieces[MOST_PIECES];
	uint64_t pages[CHUNK];
	uint64_t list[CHUNK];
	int32_t nodes[CHUNK];
	int32_t status[CHUNK];
};

struct call {
	struct desk *desk;
	int32_t pid;
	int32_t flags;
	uint64_t count;
	const uint64_t *pages;	/* the caller's arrays: only the kernel looks at them */
	const int32_t *nodes;
	int32_t *status;
	struct piece *pieces;
	uint32_t n_pieces;
	uint32_t next;		/* piece to be taken */
	uint32_t failed;	/* some piece did not move all */
	uint32_t grouped;	/* the list is more than one group */
	uint64_t longest;	/* pages of the longest piece */
	int16_t *before;	/* node of each page before, or -errno */
	int16_t *after;		/* status of each page, or UNWRITTEN */
	int32_t *scratch;	/* longest entries for each worker */
};

/* ---- Cutting the list ------------------------------------------------------- */

static uint64_t distance(uint64_t a, uint64_t b)
{
	return a > b ? a - b : b - a;
}

/* Bytes that a page of the list stands for, judged by its ends. */
static uint64_t bytes_each(uint64_t first, uint64_t last, uint64_t count)
{
	uint64_t each = distance(first, last) / (count - 1);

	if (each < 4096)
		each = 4096;
	return each > 1ull << BLOCK_SHIFT ? 1ull << BLOCK_SHIFT : each;
}

static void piece_begin(struct call *call, uint64_t first, uint64_t block)
{
	call->pieces[call->n_pieces++] = (struct piece){
		.first = first, .low = block, .high = block,
	};
}

/*
 * Every call drains the LRU caches of all CPUs and waits for that, so pieces are
 * large, and shrink towards the end, so that the workers finish together.
 */
static uint64_t piece_size(uint64_t left, uint64_t smallest, uint64_t threads)
{
	uint64_t pages = left / (2 * threads);

	return pages > smallest ? pages : smallest;
}

/* 0, or -EFAULT. Pieces end where the next page is in another block. */
static int cut(struct call *call, uint64_t smallest, uint64_t threads)
{
	uint64_t size = piece_size(call->count, smallest, threads);
	uint64_t *chunk = call->desk->pages;
	uint64_t before = 0, done, i;
	struct piece *piece = NULL;

	for (done = 0; done < call->count; done += i) {
		uint64_t n = call->count - done < CHUNK ? call->count - done : CHUNK;

		if (user_read(chunk, call->pages + done, n * sizeof(*chunk)))
			return -EFAULT;
		for (i = 0; i < n; i++) {
			uint64_t block = chunk[i] >> BLOCK_SHIFT;

			if (!piece || (piece->count >= size && block != before &&
				       call->n_pieces < MOST_PIECES)) {
				piece_begin(call, done + i, block);
				piece = &call->pieces[call->n_pieces - 1];
				size = piece_size(call->count - done - i, smallest, threads);
			}
			if (block < piece->low)
				piece->low = block;
			if (block > piece->high)
				piece->high = block;
			piece->count++;
			if (piece->count > call->longest)
				call->longest = piece->count;
			before = block;
		}
	}
	return 0;
}

/* No block may be in two pieces: a folio in both would be a race. */
static bool pieces_apart(const struct call *call)
{
	const struct piece *pieces = call->pieces;
	bool ascending = true, descending = true;
	uint32_t i, k;

	for (i = 1; i < call->n_pieces; i++) {
		ascending &= pieces[i].low > pieces[i - 1].high;
		descending &= pieces[i].high < pieces[i - 1].low;
	}
	if (ascending || descending)
		return true;
	for (i = 0; i < call->n_pieces; i++)
		for (k = 0; k < i; k++)
			if (pieces[i].low <= pieces[k].high && pieces[k].low <= pieces[i].high)
				return false;
	return true;
}

/* Is every entry of nodes the same? Also true where it cannot be read. */
static bool one_target(const struct call *call)
{
	int32_t *chunk = call->desk->nodes;
	int32_t first = 0;
	uint64_t done, i, n;

	for (done = 0; done < call->count; done += n) {
		n = call->count - done < CHUNK ? call->count - done : CHUNK;
		if (user_read(chunk, call->nodes + done, n * sizeof(*chunk)))
			return true;	/* the kernel's EFAULT will come of itself */
		if (!done)
			first = chunk[0];
		for (i = 0; i < n; i++)
			if (chunk[i] != first)
				return false;
	}
	return true;
}

/* ---- Moving the pieces -------------------------------------------------------- */

static bool stopped(const struct call *call)
{
	return __atomic_load_n(&call->failed, __ATOMIC_RELAXED) &&
	       __atomic_load_n(&call->grouped, __ATOMIC_RELAXED);
}

static void mark(uint32_t *what)
{
	__atomic_store_n(what, 1, __ATOMIC_RELAXED);
}

static void move_piece(struct call *call, struct piece *piece, int32_t *status)
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
	struct call *call = arg;

	while (!stopped(call) && crew_go_on()) {
		uint32_t at = __atomic_fetch_add(&call->next, 1, __ATOMIC_RELAXED);

		if (at >= call->n_pieces)
			break;
		move_piece(call, &call->pieces[at], call->scratch + worker * call->longest);
	}
}

/* ---- The answer ----------------------------------------------------------------- */

/* Write the statuses of the first count pages; those without one stay as they are. */
static int write_statuses(struct call *call, uint64_t count)
{
	int32_t *chunk = call->desk->status;
	uint64_t done, i, n;
	int error;

	for (done = 0; done < count; done += n) {
		n = count - done < CHUNK ? count - done : CHUNK;
		for (i = 0; i < n; i++)
			chunk[i] = call->after[done + i];
		error = user_write(call->status + done, chunk, n * sizeof(*chunk));
		if (error)
			return error;
	}
	return 0;
}

/* Reading and writing back: the caller's bytes stay, and a bad pointer shows. */
static int probe_statuses(const struct call *call)
{
	int32_t *chunk = call->desk->status;
	uint64_t done, n;

	for (done = 0; done < call->count; done += n) {
		n = call->count - done < CHUNK ? call->count - done : CHUNK;
		if (user_read(chunk, call->status + done, n * sizeof(*chunk)) ||
		    user_write(call->status + done, chunk, n * sizeof(*chunk)))
			return -EFAULT;
	}
	return 0;
}

/* Is there surely an end of a group before the first page of this piece? */
static bool begins_group(const struct call *call, const struct piece *piece)
{
	uint64_t at = piece->first;

	return !at || call->after[at - 1] < 0 || call->after[at - 1] == call->before[at - 1];
}

/* The status that the kernel wrote after those that it left out, or the end of the piece. */
static uint64_t written_after(const struct call *call, const struct piece *piece)
{
	uint64_t i = piece->unwritten;

	while (i < piece->count && call->after[piece->first + i] == UNWRITTEN)
		i++;
	return i;
}

/*
 * Did the first piece that failed hold all of the group that failed? Then the
 * kernel has done with it what it would have done with the whole list.
 */
static bool settled_within(const struct call *call, const struct piece *piece)
{
	if (!piece->unwritten && !begins_group(call, piece))
		return false;
	if (piece->result < 0)
		return piece->result != -ENOMEM;	/* for which others have used memory */
	return written_after(call, piece) < piece->count;
}

/* Put pages back on the nodes that they came from; what cannot go stays. */
static void put_back_some(const struct call *call, uint64_t count)
{
	struct desk *desk = call->desk;
	uint64_t i;

	if (!count || !raw_move_pages(call->pid, count, desk->list, desk->nodes, desk->status,
				      call->flags))
		return;
	for (i = 0; i < count; i++)	/* the first failure ended it */
		raw_move_pages(call->pid, 1, desk->list + i, desk->nodes + i, desk->status,
			       call->flags);
}

static void put_back_piece(const struct call *call, uint64_t at, uint64_t end)
{
	struct desk *desk = call->desk;
	uint64_t i, k, n;

	for (; at < end; at += n) {
		n = end - at < CHUNK ? end - at : CHUNK;
		if (user_read(desk->pages, call->pages + at, n * sizeof(*desk->pages)))
			break;
		for (i = k = 0; i < n; i++) {
			if (call->before[at + i] < 0)
				continue;
			desk->list[k] = desk->pages[i];
			desk->nodes[k++] = call->before[at + i];
		}
		put_back_some(call, k);
	}
}

/* From the piece with this number on. */
static void put_back(const struct call *call, uint32_t from)
{
	uint32_t i;

	for (i = call->n_pieces; i-- > from;)
		if (call->pieces[i].tried)
			put_back_piece(call, call->pieces[i].first,
				       call->pieces[i].first + call->pieces[i].count);
}

/* The answer is that of the piece, with the rest of the list never tried. */
static int64_t answer_of(struct call *call, const struct piece *piece)
{
	uint64_t end = piece->first + piece->count;
	uint64_t last = written_after(call, piece);
	int32_t status;
	int error;

	put_back(call, (uint32_t)(piece - call->pieces) + 1);
	error = write_statuses(call, piece->first + piece->unwritten);
	if (!error && last < piece->count) {
		status = call->after[piece->first + last];
		error = user_write(call->status + piece->first + last, &status, sizeof(status));
	}
	if (error)
		return error;
	return piece->result > 0 ? piece->result + (int64_t)(call->count - end) : piece->result;
}

/*
 * Undo from a place where surely a group begins, and let the kernel go on. No
 * folio is on both sides of the place, as it is where a piece begins.
 */
static int64_t answer_again(struct pf_mt *mt, struct call *call, uint32_t at)
{
	uint64_t begin;
	int error;

	while (!begins_group(call, &call->pieces[at]))
		at--;
	begin = call->pieces[at].first;
	put_back(call, at);
	error = write_statuses(call, begin);
	if (error)
		return error;
	__atomic_fetch_add(&mt->repeated, 1, __ATOMIC_RELAXED);
	return raw_move_pages(call->pid, call->count - begin, call->pages + begin,
			      call->nodes + begin, call->status + begin, call->flags);
}

static int64_t answer(struct pf_mt *mt, struct call *call)
{
	int64_t sum = 0;
	uint32_t i;

	if (!call->failed)
		return write_statuses(call, call->count);
	if (!call->grouped) {	/* the kernel, too, would have tried them all */
		for (i = 0; i < call->n_pieces; i++)
			sum += call->pieces[i].result;
		return sum;
	}
	for (i = 0; !call->pieces[i].result; i++)
		;
	if (settled_within(call, &call->pieces[i]))
		return answer_of(call, &call->pieces[i]);
	return answer_again(mt, call, i);
}

/* The bytes of the pages that moved, which are those with a status. */
static uint64_t bytes_listed(const struct call *call)
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

static void count_call(struct pf_mt *mt, const struct call *call, uint64_t begun_us,
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

/* ---- Entry ------------------------------------------------------------------------ */

static int64_t run(struct pf_mt *mt, struct call *call, uint32_t threads)
{
	uint64_t begun = now_us();
	int64_t result;
	int workers;

	workers = pf_crew_run(threads, mt->cpus, move_work, call, NULL, NULL, 0);
	if (workers < 0)
		return workers;
	result = answer(mt, call);
	count_call(mt, call, begun, (uint32_t)workers);
	return result;
}

/* Cut, get memory, run. False: the kernel is to have the call as it is. */
static bool in_parallel(struct pf_mt *mt, struct call *call, int64_t *result)
{
	uint64_t each, smallest, threads = mt->threads;
	uint64_t ends[2], bytes, lists;
	void *memory;
	bool done = false;

	if (user_read_ends(ends, call->pages, call->count))
		return false;
	each = bytes_each(ends[0], ends[1], call->count);
	if (each * call->count < FEWEST_BYTES)
		return false;
	smallest = call->count / (threads * SMALLEST_SHARE);
	if (smallest < call->count / (MOST_PIECES / 2))
		smallest = call->count / (MOST_PIECES / 2);
	if (smallest < SMALLEST_PIECE / each)
		smallest = SMALLEST_PIECE / each;
	call->desk = map_memory(sizeof(*call->desk));
	if (!call->desk)
		return false;
	call->pieces = call->desk->pieces;
	if (cut(call, smallest, threads) || call->n_pieces < 2 || !pieces_apart(call) ||
	    probe_statuses(call))
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
	struct call call = {
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
