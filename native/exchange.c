// SPDX-License-Identifier: Apache-2.0
/*
 * Two ranges swap their nodes, as in Nimble (ASPLOS'19), on a stock kernel: they
 * are cut into pieces, which the workers exchange (exchange_piece.c). No page is
 * allocated, so it works when both nodes are full.
 */
#include <errno.h>
#include <pthread.h>
#include <sys/mman.h>
#include <unistd.h>

#include "calls.h"
#include "crew.h"
#include "exchange.h"
#include "pages.h"
#include "populate.h"

#define EXCHANGE_BYTES (2ull << 20)	/* a huge page stays one */

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

	while (!exchange_stopped(exchanging) && crew_go_on()) {
		uint64_t i = __atomic_fetch_add(&exchanging->next, 1, __ATOMIC_RELAXED);

		if (i >= exchanging->n_pieces)
			break;
		exchange_piece(exchanging, worker, &exchanging->pieces[i]);
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
