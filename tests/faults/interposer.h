/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A mock, for faults that cannot be made on demand: every call of the core and
 * the preload library to the kernel or the C library that can fail comes
 * through here, and one of them is made to fail. All others are the real ones.
 *
 * A site is a kind of call and the chain of functions that it came through.
 */
#ifndef PAGEFERRY_INTERPOSER_H
#define PAGEFERRY_INTERPOSER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum { DEPTH = 4, SITES = 1024, ERRNOS = 16 };

/* What move_pages may return besides an errno: so many pages were not moved. */
enum { NOT_MOVED = 1000 };

struct kind {
	const char *name;
	int errnos[ERRNOS];	/* that it can return; 0 ends them */
};

/* Fail hits number first to last (from 0) of a site with an errno; -1: none. */
struct fault {
	int32_t site;
	int32_t error;
	uint32_t first;
	uint32_t last;
};

struct site {
	uintptr_t chain[DEPTH];	/* return addresses, innermost first; 0 ends them */
	uint32_t kind;
	uint32_t hits;
	struct fault behind;	/* it is come to after this fault only */
};

/* In shared memory: a child finds the sites, its parent reads them. */
struct sites {
	uint32_t lock;
	uint32_t count;
	struct site list[SITES];
};

extern struct sites *sites;
extern const struct kind kinds[];

/* With the fault that its site is behind. */
void faults_arm(struct fault fault);

/* Stop; returns how many calls were made to fail, by that fault itself. */
uint32_t faults_disarm(void);

/*
 * A machine with one node plays two for move_pages: pages of this memory are
 * said to be on node 1 until they have been moved to node 0.
 */
void second_node_begin(const void *memory, size_t bytes);
void second_node_end(void);

/* The address of a site's function in the file of this program. */
uintptr_t file_address(uintptr_t address);

#endif
