// SPDX-License-Identifier: Apache-2.0
/*
 * The list of a move_pages(2) call cut into pieces, of which no two share a folio:
 * then statuses and placement are what one call makes them, as long as all succeed.
 */
#include <errno.h>

#include "calls.h"
#include "mt_move_pages.h"

enum { SMALLEST_SHARE = 48 };	/* a piece, of the pages that are a worker's */

#define SMALLEST_PIECE (2ull << 20)	/* of address space */

static uint64_t distance(uint64_t a, uint64_t b)
{
	return a > b ? a - b : b - a;
}

uint64_t bytes_each(const struct mt_call *call)
{
	uint64_t ends[2], each;

	if (user_read_ends(ends, call->pages, call->count))
		return 0;
	each = distance(ends[0], ends[1]) / (call->count - 1);
	if (each < 4096)
		each = 4096;
	return each > 1ull << BLOCK_SHIFT ? 1ull << BLOCK_SHIFT : each;
}

static void piece_begin(struct mt_call *call, uint64_t first, uint64_t block)
{
	call->pieces[call->n_pieces++] = (struct mt_piece){
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
static int cut(struct mt_call *call, uint64_t smallest, uint64_t threads)
{
	uint64_t size = piece_size(call->count, smallest, threads);
	uint64_t *chunk = call->desk->pages;
	uint64_t before = 0, done, i;
	struct mt_piece *piece = NULL;

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
static bool pieces_apart(const struct mt_call *call)
{
	const struct mt_piece *pieces = call->pieces;
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

bool cut_list(struct mt_call *call, uint64_t each, uint64_t threads)
{
	uint64_t smallest = call->count / (threads * SMALLEST_SHARE);

	if (smallest < call->count / (MOST_PIECES / 2))
		smallest = call->count / (MOST_PIECES / 2);
	if (smallest < SMALLEST_PIECE / each)
		smallest = SMALLEST_PIECE / each;
	return !cut(call, smallest, threads) && call->n_pieces > 1 && pieces_apart(call);
}

bool one_target(const struct mt_call *call)
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
