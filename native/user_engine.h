/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Inside the user engine: taking the pages of a piece of memory away and
 * putting others in, so that no access meanwhile sees anything but the bytes.
 *
 * A lane is what one worker needs for that, a piece is what it has taken at
 * the moment. The order is
 *
 *	piece_begin	watch the piece; with PF_USER_PROTECT writers wait from here
 *	piece_take	the pages go to a side mapping; every access waits
 *	piece_put	pages go in, from any mapping; or
 *	piece_fill	new pages are made that hold what the side mapping holds
 *	piece_end	stop watching, wake whoever waited
 *	piece_free	the side mapping, with the old pages in it
 *
 * From piece_begin to piece_end the caller holds engine_enter(), has all
 * signals blocked, and touches nothing but its stack, the lane and the side
 * mapping. Nothing in between allocates memory or takes another lock.
 */
#ifndef PAGEFERRY_USER_ENGINE_H
#define PAGEFERRY_USER_ENGINE_H

#include <signal.h>
#include <stdbool.h>
#include <stdint.h>

#include "pageferry.h"

enum {
	PIECE_SPANS = 64,	/* a piece that falls apart into more is left in part */
	/* Each is one page at least, so there are never more, whatever other threads do. */
	PIECE_PLACES = (8 << 20) >> 12,
	PIECE_PATIENCE = 16,	/* how often memory is asked for again, a millisecond apart */
};

#define PIECE_BYTES_MAX ((unsigned long long)PIECE_PLACES << 12)
enum { HUGE_SHIFT = 21 };

#define HUGE_BYTES (1ull << HUGE_SHIFT)	/* what one page table of base pages spans */

#ifndef MADV_COLLAPSE
#define MADV_COLLAPSE 25	/* Linux 6.1 */
#endif

struct span {
	uint64_t offset;	/* in the piece */
	uint64_t bytes;
	int32_t error;		/* why it was left */
};

/* Where a part of the piece is: other threads may remap or empty it meanwhile. */
struct place {
	uint64_t offset;
	uint64_t bytes;
	uint64_t address;
	bool dropped;		/* madvise(MADV_DONTNEED): nothing is to come back */
};

/* A mapping with page tables of its own: see user_piece.c. munmap() it whole. */
struct apart {
	uint64_t start;
	uint64_t map;
	uint64_t map_bytes;
};

struct piece {
	uint64_t address;
	uint64_t bytes;
	uint32_t shift;
	uint32_t n_spans;
	uint32_t n_left;
	uint32_t n_places;
	uint64_t bytes_taken;
	uint64_t bytes_put;
	struct apart side;	/* what was at address + x is at side.start + x */
	uint32_t patience;	/* tries that are left when there is no memory */
	bool side_torn;		/* parts of it may be somebody else's by now */
	struct span spans[PIECE_SPANS];		/* taken */
	struct span left[PIECE_SPANS];		/* not taken */
	struct place places[PIECE_PLACES];
};

struct lane {
	int watch;		/* userfaultfd over the piece */
	int side_watch;		/* ... over the side mapping, as UFFDIO_MOVE wants it */
	int maps;		/* /proc/self/maps, or -1: see take_by_remap() */
	uint32_t way;		/* enum pf_user_way */
	uint32_t features;	/* PF_USER_HAS_* */
	uint32_t slot;		/* in the table of user_own.c */
	uint64_t block;		/* the mapping that the lane is in */
	uint64_t block_bytes;
	bool disturbed;		/* another thread changed the mapping meanwhile */
	uint64_t page;		/* base page, bytes */
	struct piece piece;
};

/* ---- user_piece.c ---- */

int lane_open(struct lane *lane, uint32_t way, uint32_t features);
void lane_close(struct lane *lane);

/* Anonymous, MADV_DONTFORK, congruent to like modulo HUGE_BYTES. 0 or -errno. */
int map_apart(uint64_t bytes, uint64_t like, struct apart *apart);

/* 0, or -errno: then nothing has changed. At most PIECE_BYTES_MAX. */
int piece_begin(struct lane *lane, uint64_t address, uint64_t bytes, uint32_t shift);

/* What could not be taken is in piece.left. */
void piece_take(struct lane *lane);

void piece_end(struct lane *lane);
void piece_free(struct lane *lane);

/* Instead: all pages were taken, are on that node, and may serve the next copy. */
void piece_give(struct lane *lane, int32_t node);

/* ---- user_put.c ---- */

/* Put in, for each taken span, the pages at from + offset. */
void piece_put(struct lane *lane, uint64_t from);

/* The same with new pages, placed by the policy of the mapping, or the thread. 0 or -errno. */
int piece_fill(struct lane *lane);

/* ---- user_places.c ---- */

void places_begin(struct piece *piece);

/* Read what the watch has to say; it lets the threads go on that said it. */
bool lane_hear(struct lane *lane);

const struct place *place_of(const struct piece *piece, uint64_t offset);

/* Has nobody moved or emptied any part of the piece, as far as was heard? */
bool in_its_place(const struct piece *piece);

/* ---- user_collapse.c ---- */

/* Make huge pages of base pages, where they fill one. Counts both; returns the bytes. */
uint64_t collapse(uint64_t start, uint64_t bytes, struct pf_user_progress *progress);

/* ---- user_own.c ---- */

/*
 * A thread takes part, and opens its lane: the memory that it runs on, and the
 * block of the lane, are in no piece from then on. lane->block and block_bytes
 * are set before. 0, or -errno; -EAGAIN: too many.
 */
int engine_join(struct lane *lane, uint32_t way, uint32_t features);
void engine_leave(struct lane *lane);

/*
 * No fork between these two; a child would find the hole. And no signal: a
 * handler would run on this very stack, and might touch the piece, or fork, and
 * wait for itself.
 */
void engine_enter(sigset_t *before);
void engine_exit(const sigset_t *before);

/* Does a worker of any call of the engine run on memory in this range? */
bool engine_runs_on(uint64_t start, uint64_t bytes);

#endif
