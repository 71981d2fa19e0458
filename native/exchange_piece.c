// SPDX-License-Identifier: Apache-2.0
/*
 * One piece of an exchange: the pages of both sides are taken away, their bytes
 * exchanged where they are, and each page is put in at the other's address.
 */
#include <errno.h>
#include <string.h>
#include <time.h>

#include "exchange.h"
#include "pages.h"
#include "stalls.h"

enum {
	PATIENCE = 3,		/* how often busy pages are tried again */
	BUSY_NS = 500000,
};

static void add(uint64_t *counter, uint64_t count)
{
	__atomic_fetch_add(counter, count, __ATOMIC_RELAXED);
}

static void refuse(struct exchanging *exchanging, uint64_t bytes, int error)
{
	struct pf_exchange *exchange = exchanging->exchange;

	if (error == ENOENT)	/* freed since the survey: there is nothing to refuse */
		add(&exchange->bytes_gone, bytes);
	else
		add(&exchange->refused[error > 0 && error < PF_MAX_ERRNO ? error : 0], bytes);
}

/* Both are whole pages, and nobody else can reach them. */
static void swap_bytes(uint64_t a, uint64_t b, uint64_t bytes)
{
	uint64_t *restrict x = (uint64_t *)(uintptr_t)a;
	uint64_t *restrict y = (uint64_t *)(uintptr_t)b;
	uint64_t i;

	for (i = 0; i < bytes / sizeof(*x); i++) {
		uint64_t word = x[i];

		x[i] = y[i];
		y[i] = word;
	}
}

/* Is the page at this offset in one of the spans? That holds until *end, or less far. */
static const struct span *span_at(const struct span *spans, uint32_t count, uint64_t offset,
				  uint64_t *end)
{
	uint32_t i;

	for (i = 0; i < count; i++) {
		uint64_t last = spans[i].offset + spans[i].bytes;

		if (offset >= last)
			continue;
		if (offset < spans[i].offset) {
			if (*end > spans[i].offset)
				*end = spans[i].offset;
			return NULL;
		}
		if (*end > last)
			*end = last;
		return &spans[i];
	}
	return NULL;
}

/* Put pages in at one part of what was taken. Returns the bytes that found their place. */
static uint64_t put(struct lane *lane, uint64_t from, uint64_t offset, uint64_t bytes)
{
	uint64_t before = lane->piece.bytes_put;

	lane->piece.spans[0] = (struct span){ .offset = offset, .bytes = bytes };
	lane->piece.n_spans = 1;
	piece_put(lane, from);
	return lane->piece.bytes_put - before;
}

/* Everything is taken: exchange what both sides have, put back what only one has. */
static void exchange_taken(struct exchanger *own, uint64_t bytes)
{
	struct lane *lanes = own->lanes;
	struct span taken[SIDES][PIECE_SPANS];
	uint32_t counts[SIDES];
	uint64_t offset, end, done;
	uint32_t i;

	for (i = 0; i < SIDES; i++) {
		counts[i] = lanes[i].piece.n_spans;
		memcpy(taken[i], lanes[i].piece.spans, counts[i] * sizeof(taken[i][0]));
	}
	for (offset = 0; offset < bytes; offset = end) {
		bool has[SIDES] = { false };

		end = bytes;
		for (i = 0; i < SIDES; i++)
			has[i] = span_at(taken[i], counts[i], offset, &end) != NULL;
		if (has[0] && has[1]) {
			swap_bytes(lanes[0].piece.side.start + offset, lanes[1].piece.side.start + offset,
				   end - offset);
			done = put(&lanes[0], lanes[1].piece.side.start, offset, end - offset);
			own->bytes_exchanged += done;
			own->bytes_gone += end - offset - done;
			put(&lanes[1], lanes[0].piece.side.start, offset, end - offset);
			continue;
		}
		for (i = 0; i < SIDES; i++)
			if (has[i])
				put(&lanes[i], lanes[i].piece.side.start, offset, end - offset);
	}
}

/*
 * From the first line to the last of this nothing may block on anything but
 * the kernel; see user_engine.h. Returns 0 or -errno: nothing has changed.
 */
static int pass(struct exchanger *own, const struct both *both, uint32_t shift)
{
	struct lane *lanes = own->lanes;
	int error = piece_begin(&lanes[0], both->at[0], both->bytes, shift);

	if (error)
		return error;
	error = piece_begin(&lanes[1], both->at[1], both->bytes, shift);
	if (error) {
		piece_end(&lanes[0]);
		piece_free(&lanes[0]);
		return error;
	}
	piece_take(&lanes[0]);
	piece_take(&lanes[1]);
	exchange_taken(own, both->bytes);
	piece_end(&lanes[0]);
	piece_end(&lanes[1]);
	return 0;
}

static void exchange_part(struct exchanging *exchanging, uint32_t worker,
			  const struct both *both, int patience);

/* What either side did not let go, each byte once. Busy ones may be so for a moment only. */
static void attend_left(struct exchanging *exchanging, uint32_t worker, const struct both *both,
			int patience)
{
	const struct lane *lanes = exchanging->workers[worker].lanes;
	struct span left[SIDES][PIECE_SPANS];
	uint32_t counts[SIDES];
	uint64_t offset, end;
	uint32_t i;

	for (i = 0; i < SIDES; i++) {
		counts[i] = lanes[i].piece.n_left;
		memcpy(left[i], lanes[i].piece.left, counts[i] * sizeof(left[i][0]));
	}
	for (offset = 0; offset < both->bytes; offset = end) {
		const struct span *first, *second;
		struct both part = { .at = { both->at[0] + offset, both->at[1] + offset } };
		int error;

		end = both->bytes;
		first = span_at(left[0], counts[0], offset, &end);
		second = span_at(left[1], counts[1], offset, &end);
		if (!first && !second)
			continue;
		part.bytes = end - offset;
		error = (first ? first : second)->error;
		if (error == EBUSY && patience && !exchange_stopped(exchanging)) {
			struct timespec time = { .tv_nsec = BUSY_NS };

			nanosleep(&time, NULL);
			exchange_part(exchanging, worker, &part, patience - 1);
		} else {
			refuse(exchanging, part.bytes, error);
		}
	}
}

static void exchange_part(struct exchanging *exchanging, uint32_t worker,
			  const struct both *both, int patience)
{
	struct exchanger *own = &exchanging->workers[worker];
	struct pf_exchange *exchange = exchanging->exchange;
	sigset_t before;
	uint64_t begun, us;
	int error;

	engine_enter(&before);
	begun = now_us();
	own->bytes_exchanged = own->bytes_gone = 0;
	error = pass(own, both, exchanging->shift);
	us = now_us() - begun;
	engine_exit(&before);
	if (error) {
		refuse(exchanging, both->bytes, -error);
		return;
	}
	add(&exchange->bytes_exchanged, own->bytes_exchanged);
	add(&exchange->bytes_gone, own->bytes_gone);
	add(&exchange->pieces, 1);
	stall_note(exchange->stalls, &exchange->stall_us_max, us);
	piece_free(&own->lanes[0]);
	piece_free(&own->lanes[1]);
	attend_left(exchanging, worker, both, patience);
}

/* Which pages are where: false when the kernel does not say. */
static bool ask_both(struct exchanging *exchanging, uint32_t worker, const struct both *both)
{
	struct exchanger *own = &exchanging->workers[worker];
	uint64_t count = both->bytes >> exchanging->shift;
	uint32_t side;
	uint64_t i;

	for (side = 0; side < SIDES; side++) {
		for (i = 0; i < count; i++)
			own->pages[i] = both->at[side] + (i << exchanging->shift);
		if (query_nodes(0, count, own->pages, own->nodes[side]))
			return false;
	}
	return true;
}

void exchange_piece(struct exchanging *exchanging, uint32_t worker, const struct both *both)
{
	const struct exchanger *own = &exchanging->workers[worker];
	const int32_t *a = own->nodes[0];
	const int32_t *b = own->nodes[1];
	uint64_t count = both->bytes >> exchanging->shift;
	uint64_t i, end;

	if (engine_runs_on(both->at[0], both->bytes) || engine_runs_on(both->at[1], both->bytes)) {
		refuse(exchanging, both->bytes, EDEADLK);
		return;
	}
	if (exchanging->exchange->flags & PF_EXCHANGE_SAME || !ask_both(exchanging, worker, both)) {
		exchange_part(exchanging, worker, both, PATIENCE);
		return;
	}
	for (i = 0; i < count; i = end) {
		bool same = a[i] >= 0 && a[i] == b[i];
		struct both part = {
			.at = { both->at[0] + (i << exchanging->shift),
				both->at[1] + (i << exchanging->shift) },
		};

		for (end = i + 1; end < count; end++)
			if ((a[end] >= 0 && a[end] == b[end]) != same)
				break;
		part.bytes = (end - i) << exchanging->shift;
		if (same)
			add(&exchanging->exchange->bytes_same, part.bytes);
		else
			exchange_part(exchanging, worker, &part, PATIENCE);
	}
}
