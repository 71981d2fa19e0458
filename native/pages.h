/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Inside the core: dealing out the pages of a list of extents in batches, and
 * the system call that both engines of the kernel's own pages rest on.
 */
#ifndef PAGEFERRY_PAGES_H
#define PAGEFERRY_PAGES_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "pageferry.h"

enum {
	BATCH_PAGES_MAX = 16384,
	BATCH_PAGES_MIN = 512,
	/* What the lists of all workers may take together, and for each page. */
	BATCH_BYTES_ALL = 32 << 20,
	BATCH_BYTES_PAGE = 48,
};

/*
 * Where the next batch begins. Shared by the workers, without a lock: one that
 * is kept from its CPU must not keep the others from their work.
 */
struct cursor {
	const struct pf_extent *extents;
	uint64_t n_extents;
	uint64_t *pages_before;	/* those in earlier extents, for each extent */
	uint64_t *bytes_before;
	uint64_t small[2];	/* the same for a single extent */
	uint64_t pages;
	uint64_t bytes;
	uint64_t next;		/* pages dealt out so far */
	uint64_t smallest;	/* batch worth a call of its own, in bytes */
	uint32_t workers;	/* that still claim */
};

/* Pages dealt to one worker; the arrays have room for capacity entries. */
struct batch {
	uint64_t capacity;
	uint64_t count;
	uint64_t index;		/* of the first page, among all */
	uint64_t bytes;
	uint64_t *address;
	uint8_t *shift;
	uint8_t *kind;
	int32_t *status;
};

/* 0 or -ENOMEM. */
int cursor_init(struct cursor *cursor, const struct pf_extent *extents,
		uint64_t n_extents, uint32_t workers);
void cursor_destroy(struct cursor *cursor);

/* Pages in all extents together. */
uint64_t extents_pages(const struct pf_extent *extents, uint64_t n_extents);

/* Fill the batch with at most limit bytes, or one page. False: none left. */
bool cursor_claim(struct cursor *cursor, struct batch *batch, uint64_t limit);

/* So many workers claim from now on: batches shrink and grow with their number. */
void cursor_share(struct cursor *cursor, uint32_t workers);

/* Bytes that nobody has claimed. */
uint64_t cursor_left(const struct cursor *cursor);

/* For those that claim in a way of their own: the extent of a page, the bytes from it on. */
uint64_t cursor_extent(const struct cursor *cursor, uint64_t page);
uint64_t cursor_bytes_from(const struct cursor *cursor, uint64_t page);

/* Take all that is left, without listing it: its first page's number, pages and bytes. */
uint64_t cursor_drain(struct cursor *cursor, uint64_t *pages, uint64_t *bytes);

/* How many pages one of so many workers lists at a time. */
uint64_t batch_capacity(uint64_t pages, uint32_t workers);

/*
 * The lists of a batch lie in memory that the caller of the crew gives all its
 * workers: helpers allocate nothing, since that takes locks.
 */
size_t batch_room(uint64_t capacity);
void batch_place(struct batch *batch, void *room, uint64_t capacity);

/* The shift of the pages that are nearly all of the batch, or 0. */
uint32_t batch_shift(const struct batch *batch);

/*
 * move_pages(2): what it returns, or -errno; -ESRCH also where the kernel says
 * -EINVAL because the process has no memory any more.
 */
long sys_move_pages(int32_t pid, uint64_t count, const uint64_t *pages,
		    const int32_t *nodes, int32_t *status, int flags);

/* Write the node, or -errno, of each page. 0 or -errno of the whole call. */
int query_nodes(int32_t pid, uint64_t count, const uint64_t *pages, int32_t *status);

uint64_t now_us(void);

#endif
