/* SPDX-License-Identifier: Apache-2.0 */
/* Inside the core: one move_pages(2) call by several threads. */
#ifndef PAGEFERRY_MT_MOVE_PAGES_H
#define PAGEFERRY_MT_MOVE_PAGES_H

#include "mt_calls.h"

enum {
	MOST_PIECES = 2048,
	CHUNK = 4096,		/* entries of a caller's array looked at together */
	UNWRITTEN = INT16_MIN,
};

struct mt_piece {
	uint64_t first;		/* index of its first page */
	uint64_t count;
	uint64_t low;		/* lowest and highest 2 MiB block */
	uint64_t high;
	int64_t result;		/* of the call */
	uint64_t unwritten;	/* first page without a status, from the piece's first on */
	bool tried;
};

/* Room to look at callers' arrays; not on the stack, which may be a small one. */
struct mt_desk {
	struct mt_piece pieces[MOST_PIECES];
	uint64_t pages[CHUNK];
	uint64_t list[CHUNK];
	int32_t nodes[CHUNK];
	int32_t status[CHUNK];
};

struct mt_call {
	struct mt_desk *desk;
	int32_t pid;
	int32_t flags;
	uint64_t count;
	const uint64_t *pages;	/* the caller's arrays: only the kernel looks at them */
	const int32_t *nodes;
	int32_t *status;
	struct mt_piece *pieces;
	uint32_t n_pieces;
	uint32_t next;		/* piece to be taken */
	uint32_t failed;	/* some piece did not move all */
	uint32_t grouped;	/* the list is more than one group */
	uint64_t longest;	/* pages of the longest piece */
	int16_t *before;	/* node of each page before, or -errno */
	int16_t *after;		/* status of each page, or UNWRITTEN */
	int32_t *scratch;	/* longest entries for each worker */
};

/* ---- mt_pieces.c ---- */

/* Bytes that a page of the list stands for, judged by its ends; 0: they cannot be read. */
uint64_t bytes_each(const struct mt_call *call);

/* False: it cannot be read, or not be cut into pieces that share no folio. */
bool cut_list(struct mt_call *call, uint64_t each, uint64_t threads);

/* Is every entry of nodes the same? Also true where it cannot be read. */
bool one_target(const struct mt_call *call);

/* ---- mt_answer.c ---- */

/* 0, or -EFAULT. Reading and writing back: the caller's bytes stay, and a bad pointer shows. */
int probe_statuses(const struct mt_call *call);

/* What the call returns; writes its statuses. No worker is at a piece any more. */
int64_t answer_call(struct pf_mt *mt, struct mt_call *call);

#endif
