// SPDX-License-Identifier: Apache-2.0
/*
 * The answer to a move_pages(2) call whose list was moved in pieces.
 *
 * The kernel takes pages in the caller's order, in groups: a group ends where
 * the target changes and at each page that needs no move or cannot be queued.
 * It stops after the first group of which a page did not move, leaves the
 * statuses from that group on unwritten, and returns how many pages are not
 * moved (do_pages_move in mm/migrate.c). So, when a piece fails:
 *  - if all pages of the list form one group, the kernel tries them all, and so
 *    do we: the failures of the pieces are added up, and no status is written;
 *  - if the piece holds all of its group that failed, its answer stands, and what
 *    later pieces moved goes back to where it was;
 *  - else what was moved from that group on goes back, and the kernel gets the
 *    rest of the list as it is.
 */
#include <errno.h>

#include "calls.h"
#include "mt_move_pages.h"

/* Write the statuses of the first count pages; those without one stay as they are. */
static int write_statuses(struct mt_call *call, uint64_t count)
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

int probe_statuses(const struct mt_call *call)
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
static bool begins_group(const struct mt_call *call, const struct mt_piece *piece)
{
	uint64_t at = piece->first;

	return !at || call->after[at - 1] < 0 || call->after[at - 1] == call->before[at - 1];
}

/* The status that the kernel wrote after those that it left out, or the end of the piece. */
static uint64_t written_after(const struct mt_call *call, const struct mt_piece *piece)
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
static bool settled_within(const struct mt_call *call, const struct mt_piece *piece)
{
	if (!piece->unwritten && !begins_group(call, piece))
		return false;
	if (piece->result < 0)
		return piece->result != -ENOMEM;	/* for which others have used memory */
	return written_after(call, piece) < piece->count;
}

/* Put pages back on the nodes that they came from; what cannot go stays. */
static void put_back_some(const struct mt_call *call, uint64_t count)
{
	struct mt_desk *desk = call->desk;
	uint64_t i;

	if (!count || !raw_move_pages(call->pid, count, desk->list, desk->nodes, desk->status,
				      call->flags))
		return;
	for (i = 0; i < count; i++)	/* the first failure ended it */
		raw_move_pages(call->pid, 1, desk->list + i, desk->nodes + i, desk->status,
			       call->flags);
}

static void put_back_piece(const struct mt_call *call, uint64_t at, uint64_t end)
{
	struct mt_desk *desk = call->desk;
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
static void put_back(const struct mt_call *call, uint32_t from)
{
	uint32_t i;

	for (i = call->n_pieces; i-- > from;)
		if (call->pieces[i].tried)
			put_back_piece(call, call->pieces[i].first,
				       call->pieces[i].first + call->pieces[i].count);
}

/* The answer is that of the piece, with the rest of the list never tried. */
static int64_t answer_of(struct mt_call *call, const struct mt_piece *piece)
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
static int64_t answer_again(struct pf_mt *mt, struct mt_call *call, uint32_t at)
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

int64_t answer_call(struct pf_mt *mt, struct mt_call *call)
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
