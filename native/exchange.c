// SPDX-License-Identifier: Apache-2.0
/*
 * Two ranges swap their nodes, as in Nimble (ASPLOS'19), on a stock kernel: a
 * piece of each is taken away, the bytes of their pages are exchanged where they
 * are, and each page is put back at the other's address. No page is allocated,
 * so it works when both nodes are full.
 */
#include <errno.h>
#include <pthread.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#include "calls.h"
#include "crew.h"
#include "pages.h"
#include "populate.h"
#include "stalls.h"
#include "user_engine.h"

enum {
	SIDES = 2,
	PAGES_MAX = PIECE_BYTES_MAX >> 12,
	PATIENCE = 3,		/* how often busy pages are tried again */
	BUSY_NS = 500000,
};

#define EXCHANGE_BYTES (2ull << 20)	/* a huge page stays one */

struct exchanger {
	struct lane lanes[SIDES];
	/* Of the piece under way: the caller's structure may be in the piece itself. */
	uint64_t bytes_exchanged;
	uint64_t bytes_gone;
	uint64_t pages[PAGES_MAX];
	int32_t nodes[SIDES][PAGES_MAX];
};

/* A piece of both ranges. */
struct both {
	uint64_t at[SIDES];
	uint64_t bytes;
};

/* One call of pf_exchange_run(), in a mapping of its own. */
struct exchanging {
	struct pf_exchange *exchange;
	struct both *pieces;	/* cut ahead, so that no worker holds a lock to claim one */
	uint64_t n_pieces;
	uint64_t next;
	bool again;		/* worker 0 came back to call missed helpers; its lanes are open */
	uint64_t polled_us;	/* worker 0 only */
	uint64_t bytes;		/* of this mapping */
	uint32_t features;
	uint32_t shift;		/* of a base page */
	struct exchanger workers[];
};

static void add(uint64_t *counter, uint64_t count)
{
	__atomic_fetch_add(counter, count, __ATOMIC_RELAXED);
}

static bool stopped(const struct exchanging *exchanging)
{
	return __atomic_load_n(&exchanging->exchange->cancel, __ATOMIC_RELAXED) ||
	       __atomic_load_n(&exchanging->exchange->error, __ATOMIC_RELAXED);
}

static int poll_now(void *arg)
{
	struct exchanging *exchanging = arg;
	struct pf_exchange *exchange = exchanging->exchange;

	exchanging->polled_us = now_us();
	if (exchange->poll && !__atomic_load_n(&exchange->cancel, __ATOMIC_RELAXED) &&
	    exchange->poll(exchange->poll_arg))
		__atomic_store_n(&exchange->cancel, 1, __ATOMIC_RELAXED);
	return 0;
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

static void exchange_piece(struct exchanging *exchanging, uint32_t worker,
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
		if (error == EBUSY && patience && !stopped(exchanging)) {
			struct timespec time = { .tv_nsec = BUSY_NS };

			nanosleep(&time, NULL);
			exchange_piece(exchanging, worker, &part, patience - 1);
		} else {
			refuse(exchanging, part.bytes, error);
		}
	}
}

static void exchange_piece(struct exchanging *exchanging, uint32_t worker,
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

/* Exchange where the nodes differ. */
static void attend(struct exchanging *exchanging, uint32_t worker, const struct both *both)
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
		exchange_piece(exchanging, worker, both, PATIENCE);
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
			exchange_piece(exchanging, worker, &part, PATIENCE);
	}
}

/* How much of a pair is one piece: one that reaches a border of huge pages ends there. */
static uint64_t piece_of(const struct pf_exchange_pair *pair, uint64_t offset)
{
	uint64_t bytes = pair->bytes - offset;
	uint64_t end;

	if (bytes > EXCHANGE_BYTES)
		bytes = EXCHANGE_BYTES;
	end = pair->a + offset + bytes;
	if (end / HUGE_BYTES > (pair->a + offset) / HUGE_BYTES)
		bytes -= end % HUGE_BYTES;
	return bytes;
}

/* Their number; written where pieces is not NULL. */
static uint64_t cut_pieces(const struct pf_exchange *exchange, struct both *pieces)
{
	uint64_t count = 0;
	uint64_t i, offset;

	for (i = 0; i < exchange->n_pairs; i++) {
		const struct pf_exchange_pair *pair = &exchange->pairs[i];

		for (offset = 0; offset < pair->bytes; count++) {
			uint64_t bytes = piece_of(pair, offset);

			if (pieces)
				pieces[count] = (struct both){
					.at = { pair->a + offset, pair->b + offset },
					.bytes = bytes,
				};
			offset += bytes;
		}
	}
	return count;
}

/* About so many bytes: pieces are of one length, but for the last of each pair. */
static uint64_t left_from(const struct exchanging *exchanging, uint64_t piece)
{
	uint64_t count = exchanging->n_pieces;

	return piece < count ? exchanging->pieces[piece].bytes * (count - piece) : 0;
}

static void work_on(struct exchanging *exchanging, uint32_t worker)
{
	const struct pf_exchange *exchange = exchanging->exchange;

	while (!stopped(exchanging) && crew_go_on()) {
		uint64_t i = __atomic_fetch_add(&exchanging->next, 1, __ATOMIC_RELAXED);

		if (i >= exchanging->n_pieces)
			break;
		attend(exchanging, worker, &exchanging->pieces[i]);
		if (worker == 0 && exchange->poll && exchange->poll_us &&
		    now_us() - exchanging->polled_us >= exchange->poll_us)
			poll_now(exchanging);
		if (worker == 0 && crew_call_again(left_from(exchanging, i + 1))) {
			exchanging->again = true;
			break;
		}
	}
}

static int open_lane(const struct exchanging *exchanging, struct lane *lane)
{
	lane->block = (uintptr_t)exchanging;
	lane->block_bytes = exchanging->bytes;
	return engine_join(lane, PF_USER_CHECKED, exchanging->features);
}

static int open_lanes(const struct exchanging *exchanging, struct lane *lanes)
{
	int error = open_lane(exchanging, &lanes[0]);

	if (error)
		return error;
	error = open_lane(exchanging, &lanes[1]);
	if (error)
		engine_leave(&lanes[0]);
	return error;
}

static void exchange_work(void *arg, uint32_t worker)
{
	struct exchanging *exchanging = arg;
	struct lane *lanes = exchanging->workers[worker].lanes;
	int32_t none = 0;
	int error = 0;

	if (worker && !crew_go_on())	/* others need the CPU: no lanes for nothing */
		return;
	/* There may be no files for new ones in the middle of the work. */
	if (worker || !exchanging->again)
		error = open_lanes(exchanging, lanes);
	if (error && worker == 0)	/* the others can do without this one */
		__atomic_compare_exchange_n(&exchanging->exchange->error, &none, -error, false,
					    __ATOMIC_RELAXED, __ATOMIC_RELAXED);
	if (error)
		return;
	if (worker == 0)
		exchanging->again = false;
	work_on(exchanging, worker);
	if (worker == 0 && exchanging->again)
		return;
	engine_leave(&lanes[1]);
	engine_leave(&lanes[0]);
}

/* Whole pages, and no page twice: a piece must not wait for itself. */
static bool valid(const struct pf_exchange *exchange, uint64_t page)
{
	uint64_t i;

	for (i = 0; i < exchange->n_pairs; i++) {
		const struct pf_exchange_pair *pair = &exchange->pairs[i];

		if ((pair->a | pair->b | pair->bytes) % page || !pair->bytes ||
		    pair->a > UINT64_MAX - pair->bytes || pair->b > UINT64_MAX - pair->bytes)
			return false;
		if (pair->a < pair->b + pair->bytes && pair->b < pair->a + pair->bytes)
			return false;
	}
	return true;
}

static int run(struct pf_exchange *exchange)
{
	uint64_t page = (uint64_t)1 << base_page_shift();
	const uint32_t needed = PF_USER_HAS_MOVE | PF_USER_HAS_EVENTS;
	int64_t features = pf_user_features();
	struct exchanging *exchanging;
	uint64_t count, bytes, i;
	int workers;

	if (!exchange->threads || exchange->threads > PF_MAX_THREADS || !valid(exchange, page))
		return -EINVAL;
	if (features < 0)
		return (int)features;
	if (needed & ~(uint32_t)features)
		return -EOPNOTSUPP;
	count = cut_pieces(exchange, NULL);
	bytes = sizeof(*exchanging) + exchange->threads * sizeof(struct exchanger) +
		count * sizeof(struct both);
	bytes = (bytes + page - 1) & ~(page - 1);
	exchanging = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (exchanging == MAP_FAILED)
		return -ENOBUFS;
	exchanging->exchange = exchange;
	exchanging->bytes = bytes;
	exchanging->features = (uint32_t)features;
	exchanging->shift = base_page_shift();
	exchanging->polled_us = now_us();
	exchanging->pieces = (struct both *)&exchanging->workers[exchange->threads];
	exchanging->n_pieces = cut_pieces(exchange, exchanging->pieces);
	do {
		workers = pf_crew_run(exchange->threads, exchange->cpus, exchange_work, exchanging,
				      poll_now, exchanging, exchange->poll_us);
		if (workers > (int)exchange->workers)
			exchange->workers = (uint32_t)workers;
	} while (exchanging->again);
	for (i = exchanging->next; i < count; i++)
		exchange->bytes_skipped += exchanging->pieces[i].bytes;
	unmap_memory(exchanging, bytes);
	if (workers < 0)
		return workers;
	if (exchange->error)
		return -exchange->error;
	return exchange->cancel ? -ECANCELED : 0;
}

int pf_exchange_run(struct pf_exchange *exchange)
{
	int cancelling, result;

	/* Nobody may end this thread while it holds a piece, or helpers work for it. */
	pthread_setcancelstate(PTHREAD_CANCEL_DISABLE, &cancelling);
	result = run(exchange);
	pthread_setcancelstate(cancelling, NULL);
	return result;
}
