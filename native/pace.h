/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Inside the core: at which pace the workers of a move claim pieces. Helps an
 * engine keep to a rate, and finds out by measurement whether its helpers help.
 *
 * Worker 0, the caller, works through a first small piece alone, and then judges
 * between its pieces: when all workers together are slower than it was alone,
 * the others are sent away. Rates are compared for pieces of one page size.
 */
#ifndef PAGEFERRY_PACE_H
#define PAGEFERRY_PACE_H

#include <stdbool.h>
#include <stdint.h>

#include "pageferry.h"

/* Finished pieces of the page size that is compared. */
struct pace_account {
	uint64_t bytes;
	uint64_t us;
	uint64_t pieces;
};

/* One worker's book. */
struct pace_slot {
	/* written by that worker alone */
	struct pace_account done;
	uint64_t begun_us;		/* of the piece that it is at, 0: none */
	uint64_t piece;			/* its bytes */
	/* by worker 0: where done was when the account that is judged was opened */
	struct pace_account base;
};

struct pace {
	struct pf_pace *book;
	struct pace_slot *slots;	/* one for each worker, zeroed by the caller */
	uint32_t workers;
	uint32_t alone;			/* the helpers are sent away, or not there yet */
	uint32_t helping;		/* helpers in the middle of the work */
	uint32_t turns;			/* how often all were together */
	uint64_t since_us;		/* they have been together, or worker 0 alone */
};

/*
 * How many bytes the caller should do alone before the others come, or 0: go
 * on together at once. The loss is at most one part in 64 of the whole.
 */
uint64_t pace_probe(const struct pace *pace, uint64_t bytes);

/* Its probe is done, or its time alone is over: the rest is for all. */
void pace_together(struct pace *pace);

/* Around a piece; shift is that of nearly all its pages, or 0. */
void pace_begin(struct pace *pace, uint32_t worker, uint64_t bytes);
void pace_end(struct pace *pace, uint32_t worker, uint64_t bytes, uint32_t shift);

/*
 * A helper comes, asks between pieces whether to go on, says when it goes
 * for a reason of the crew's, and goes.
 */
void pace_come(struct pace *pace, uint32_t worker);
bool pace_go_on(const struct pace *pace, uint32_t worker);
void pace_leave(struct pace *pace);
uint32_t pace_helping(const struct pace *pace);	/* who have come, and not gone */
void pace_go(struct pace *pace, uint32_t worker);

/*
 * For worker 0 between two pieces, left bytes being unclaimed: judge. True: it
 * has worked alone for long enough that the helpers deserve another try, or the
 * crew wants it, and should come back from its work for that. It waits longer
 * each time that they were no use.
 */
bool pace_judge(struct pace *pace, uint64_t left);

/* Whether a run is to pause now; the word is set by any thread. */
bool pace_paused(const uint32_t *pause);

/* Sleep for a moment, after which to look again. */
void pace_nap(void);

/*
 * Keep to book->max_rate: reserve() says when a piece of so many bytes may be
 * finished, 0 for at once; the worker sleeps until then, a little at a time.
 * The largest piece that fits into a few milliseconds is pace_piece().
 */
uint64_t pace_reserve(struct pace *pace, uint64_t bytes);
bool pace_sleep(uint64_t until_us);	/* False: it is time */
uint64_t pace_piece(const struct pace *pace, uint64_t bytes);

/* The same for an engine that keeps its own book of when all that was claimed is paid for. */
uint64_t rate_reserve(uint64_t max_rate, uint64_t *due_us, uint64_t bytes);
uint64_t rate_piece(uint64_t max_rate, uint64_t bytes);

#endif
