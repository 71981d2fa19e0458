/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Inside the user engine: one call of pf_user_run(), what its workers share and
 * what each is at. They move pieces independently of each other.
 */
#ifndef PAGEFERRY_USER_RUN_H
#define PAGEFERRY_USER_RUN_H

#include "pages.h"
#include "user_engine.h"

enum {
	NODE_BITS = PF_MAX_NODES,
	NODE_LONGS = NODE_BITS / (8 * sizeof(unsigned long)) + 1,
	SAMPLE_STRIDE = 64,	/* one base page in so many is asked for its node first */
	PIECE_PAGES = PIECE_BYTES_MAX >> 12,
};

#define PIECE_BYTES_MIN (64ull << 10)

/* The memory policy of a thread. */
struct policy {
	unsigned long mask[NODE_LONGS];
	int mode;
	bool known;
};

struct worker {
	struct lane lane;
	struct policy before;
	uint64_t addresses[PIECE_PAGES];
	int32_t nodes[PIECE_PAGES];	/* before the move */
	int32_t answers[PIECE_PAGES];	/* after it */
	bool incomplete;	/* a part of the piece was left, or is gone */
};

/* One call of pf_user_run(), in a mapping of its own. */
struct running {
	struct pf_user *user;
	struct cursor cursor;
	uint64_t piece_bytes;	/* adapted by all workers, the last one wins */
	uint64_t polled_us;	/* worker 0 only */
	uint64_t bytes;		/* of this mapping */
	uint32_t features;
	uint32_t base_shift;
	uint32_t threads;
	int without_caller;	/* worker 0 could not take part: errno */
	uint32_t held;		/* come back before the end: there may be more to do */
	uint32_t full;		/* the target has no pages of this size any more */
	uint32_t copy_method;	/* user itself may be in the piece that is away */
	struct worker workers[];
};

/* What a worker is at. */
struct task {
	struct running *running;
	struct worker *worker;
	uint64_t address;
	uint64_t bytes;
	uint32_t shift;
	uint32_t kind;
	int32_t source;		/* node of all pages, or -1: not known */
};

static inline void add(uint64_t *counter, uint64_t count)
{
	__atomic_fetch_add(counter, count, __ATOMIC_RELAXED);
}

/* ---- user_features.c ---- */

/* What a way needs of PF_USER_HAS_*. */
uint32_t user_needs(uint32_t way);

/* ---- user_policy.c: UFFDIO_COPY takes pages where the thread prefers them ---- */

void prefer_target(struct policy *before, int32_t node);

/*
 * 0, or -errno: what the thread had cannot be set again, so it has the default
 * one, or where not even that can be, goes on preferring the target.
 */
int prefer_as_before(const struct policy *before);

/* A policy of the mapping itself would overrule the thread's. */
bool thread_decides(uint64_t address);

/* ---- user_count.c ---- */

/* For another engine; where the caller has no room for more, not tried. */
void leave_extent(struct pf_user *user, const struct pf_extent *extent, int error);
void leave(const struct task *task, uint64_t address, uint64_t bytes, int error);

/* A piece was away for so long: count that, and fit the next ones to it. */
void note_stall(struct running *running, uint64_t bytes, uint64_t us);

/* Write the nodes of every stride-th page and the last one. Their number, 0: not known. */
uint64_t ask(const struct task *task, uint64_t stride, int32_t *nodes);

/*
 * After UFFDIO_COPY: has the target really had room? What could not be taken
 * is where it was, and none of these pages.
 */
uint64_t bytes_astray(const struct task *task);

/* ---- user_move.c ---- */

/* Move the pages of a task, which is one piece of memory; count what came of it. */
void move_piece(const struct task *task);

#endif
