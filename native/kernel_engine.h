/* SPDX-License-Identifier: Apache-2.0 */
/* Inside the kernel engine: what its files share. */
#ifndef PAGEFERRY_KERNEL_ENGINE_H
#define PAGEFERRY_KERNEL_ENGINE_H

#include "pace.h"
#include "pages.h"

enum { PATIENCE = 8 };	/* batches whose pauses were in vain before we stop pausing */

#define BATCH_BYTES_MIN (2u << 20)
#define BATCH_BYTES_MAX (256u << 20)

/* One pf_move_run() call. */
struct moving {
	struct pf_move *move;
	struct cursor cursor;
	uint64_t capacity;	/* pages in one worker's lists */
	char *memory;		/* of the next two, for all workers */
	char *room;		/* the lists */
	struct pace pace;
	uint32_t counted;	/* worker 0 has seen which helpers began */
	uint32_t held;		/* somebody saw a pause: all come back */
	uint64_t batch_bytes;	/* adapted by all workers, last one wins */
	uint64_t polled_us;	/* worker 0 only */
	int32_t patience;
	uint32_t base_shift;
};

/* What one worker needs besides its batch: the pages still to be moved. */
struct pending {
	uint64_t count;
	uint32_t *slot;		/* in the batch */
	uint64_t *address;
	int32_t *node;		/* the target, for each */
	int32_t *status;
	uint64_t *asked;	/* addresses asked about again */
	uint8_t *busy;		/* the kernel's own answer was EBUSY */
	uint8_t *torn;		/* by slot: was in a call that failed, may have been split */
};

static inline void add(uint64_t *counter, uint64_t count)
{
	__atomic_fetch_add(counter, count, __ATOMIC_RELAXED);
}

/* ---- kernel_engine.c ---- */

bool move_stopped(const struct pf_move *move);
void move_stop(struct pf_move *move, int error);

/* For worker 0, which may be in Python: progress, Ctrl-C. */
int poll_now(void *arg);
void poll_if_due(struct moving *moving, uint32_t worker);

/* Count what needs no move; the rest becomes pending. 0 or -errno. */
int sort_out(struct moving *moving, struct batch *batch, struct pending *pending);

/*
 * Move what is pending, with the retries that the mode allows, and count it.
 * True: in one go, so that the time it took says something.
 */
bool move_pending(struct moving *moving, struct batch *batch, struct pending *pending,
		  uint32_t worker);

/* ---- tally.c: every page of a batch passes through exactly one of these ---- */

void count_moved(struct moving *moving, const struct batch *batch, uint64_t slot);
/*
 * The counters of many pages at once, by kind: the workers share them, and would
 * wait for each other's cache line at every page.
 */
void count_moved_all(struct moving *moving, uint64_t bytes, const uint64_t *pages);
void count_already(struct moving *moving, const struct batch *batch, uint64_t slot);
void count_elsewhere(struct moving *moving, const struct batch *batch, uint64_t slot,
		     int32_t node);
void count_skipped(struct moving *moving, const struct batch *batch, uint64_t slot);
void count_failed(struct moving *moving, const struct batch *batch, uint64_t slot, int error);

/* A huge page of which moved base pages moved; first is one that did not. */
void count_split(struct moving *moving, const struct batch *batch, uint64_t slot,
		 uint64_t moved, uint64_t first, int error);

/* A page that will not be tried again, by what the kernel said of it last. */
void count_by_status(struct moving *moving, const struct batch *batch, uint64_t slot,
		     int32_t status);

/* ---- settle.c: what became of the pages of a call ---- */

int move_flags(const struct pf_move *move);

/*
 * Ask again for the pages whose status settles nothing: where are they now?
 * Uses answer, as long as the batch. 0, or -errno when the kernel is silent.
 */
int clear_up(struct moving *moving, struct pending *pending, int32_t *answer);

/*
 * Count what is settled and keep what is on another node, or, with absent, is
 * nowhere right now (another migration may be at it). Returns pages settled.
 */
uint64_t settle(struct moving *moving, struct batch *batch, struct pending *pending,
		bool absent);

/* The pages that are left have failed. */
void give_up(struct moving *moving, struct batch *batch, struct pending *pending, int error);

/* The hugetlb pages among them have failed, for want of a free one. False: there are none. */
bool give_up_hugetlb(struct moving *moving, struct batch *batch, struct pending *pending);

/* The kernel refused the call as a whole, before or after moving some. */
void refuse(struct moving *moving, struct batch *batch, struct pending *pending, int error);

#endif
