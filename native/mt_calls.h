/* SPDX-License-Identifier: Apache-2.0 */
/* Inside the core: what the parallel forms of the three system calls share. */
#ifndef PAGEFERRY_MT_CALLS_H
#define PAGEFERRY_MT_CALLS_H

#include <stdbool.h>
#include <stdint.h>

#include "pageferry.h"

enum {
	MOVE = 1 << 1,		/* MPOL_MF_MOVE */
	MOVE_ALL = 1 << 2,	/* MPOL_MF_MOVE_ALL */
	BLOCK_SHIFT = 21,	/* lists are never cut inside such a block */
};

/* Add to the counters of mt after a call by several threads that began at begun_us. */
void mt_count(struct pf_mt *mt, uint64_t begun_us, uint64_t pages, uint64_t bytes,
	      uint32_t workers);

/*
 * The flags without MPOL_MF_MOVE_MT, which the kernel does not know; with it
 * where none says to move, so that the kernel answers EINVAL.
 */
static inline uint32_t mt_plain_flags(uint32_t flags)
{
	return flags & (MOVE | MOVE_ALL) ? flags & ~(uint32_t)PF_MPOL_MF_MOVE_MT : flags;
}

/* Count a call that the kernel gets as it is, and return result. */
int64_t mt_passed(struct pf_mt *mt, int64_t result);

/* May this process move pages that several processes map (CAP_SYS_NICE)? */
bool may_move_all(void);

/*
 * A node mask as the kernel reads it: maxnode counts one more than the bits.
 * False: not readable, or nodes beyond PF_MAX_NODES; the kernel has the word.
 */
bool read_mask(uint64_t *nodes, const uint64_t *mask, uint64_t maxnode);

/* The only node of a mask, or -1. */
int32_t only_node(const uint64_t *nodes);

struct mt_range {
	uint64_t start;
	uint64_t end;
};

/*
 * Moving what is present in ranges of a process to one node, one try for each
 * page: mt_mover_begin(), mt_mover_add() for each range, upwards, mt_mover_end().
 */
struct mt_mover {
	const struct pf_mt *mt;
	int32_t pid;
	int32_t target;
	const uint64_t *sources;	/* only pages on these nodes, or NULL */
	bool shared;
	int pagemap;
	struct mt_range *ranges;
	uint64_t n_ranges;
	uint64_t bytes_mapped;		/* in the ranges */
	/* what became of it, added up */
	uint64_t pages;			/* on the target now; those that were, too */
	uint64_t bytes;
	uint32_t workers;
	uint32_t left;			/* 1: some page is not, or could not be listed */
};

/* False: nothing can be listed. mt_mover_end() is to be called nevertheless. */
bool mt_mover_begin(struct mt_mover *mover, const struct pf_mt *mt, int32_t pid,
		    int32_t target, const uint64_t *sources, bool shared);
void mt_mover_add(struct mt_mover *mover, uint64_t start, uint64_t end);
void mt_mover_end(struct mt_mover *mover);

/* A survey of a range, by the best way that this kernel has. */
struct pf_survey mt_survey(int32_t pid, int pagemap, uint64_t start, uint64_t end);
int64_t mt_survey_next(struct pf_survey *survey, struct pf_extent *extents, uint64_t max);

/* Open a file of /proc/PID, or of /proc/self for pid 0. */
int open_proc(int32_t pid, const char *name);

/* Bytes of a process that are in memory, huge pages of all kinds included; 0: not known. */
uint64_t mt_resident(int32_t pid);

/* Looking up the sizes of listed pages, near each other mostly. */
struct mt_listing {
	int pagemap;		/* -1: everything counts as base pages */
	uint64_t block;		/* the 2 MiB block that was looked at last, plus 1 */
	bool huge;
	bool counted;		/* this block, as one page */
};

/* The bytes that the page at an address stands for; 0 for a huge one listed again. */
uint64_t mt_bytes_at(struct mt_listing *listing, uint64_t address);

#endif
