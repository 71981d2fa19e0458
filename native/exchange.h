/* SPDX-License-Identifier: Apache-2.0 */
/* Inside the core: one call of pf_exchange_run(), what its workers share and what each is at. */
#ifndef PAGEFERRY_EXCHANGE_H
#define PAGEFERRY_EXCHANGE_H

#include "user_engine.h"

enum { SIDES = 2, PAGES_MAX = PIECE_BYTES_MAX >> 12 };

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

/* Shall its workers begin no more? Somebody said so, or there was an error. */
static inline bool exchange_stopped(const struct exchanging *exchanging)
{
	return __atomic_load_n(&exchanging->exchange->cancel, __ATOMIC_RELAXED) ||
	       __atomic_load_n(&exchanging->exchange->error, __ATOMIC_RELAXED);
}

/* ---- exchange_piece.c ---- */

/* Exchange a piece where the nodes of the two differ, and count what became of it. */
void exchange_piece(struct exchanging *exchanging, uint32_t worker, const struct both *both);

#endif
