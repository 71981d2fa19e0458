/* SPDX-License-Identifier: Apache-2.0 */
/* Inside libpageferry_preload.so: what its files share. */
#ifndef PAGEFERRY_PRELOAD_H
#define PAGEFERRY_PRELOAD_H

#include <stdbool.h>
#include <stdint.h>

#include "pageferry.h"

enum preload_mode {
	PRELOAD_NEVER,		/* the flag is accepted, and one thread moves */
	PRELOAD_FLAG,		/* several threads where MPOL_MF_MOVE_MT is given */
	PRELOAD_ALWAYS,		/* ... for every call */
};

/*
 * What the launcher hands over in the environment; read once, when the library
 * is loaded, and not in set-uid programs.
 */
struct preload_settings {
	enum preload_mode mode;
	uint32_t threads;	/* 0: as many as CPUs may be used, at most 8 */
	uint32_t n_cpus;
	int32_t cpus[PF_MAX_THREADS];
	uint64_t memory_nodes[PF_NODE_WORDS];
	const char *log;	/* a file to append to, "stderr", or NULL: print nothing */
	const char *stats;	/* a file of the launcher's to add up counters in, or NULL */
};

extern struct preload_settings preload_settings;

void preload_read_settings(void);

/*
 * Threads for a call that is made now, and their CPUs, or NULL. No CPU that the
 * calling thread may not use, whatever was planned before.
 */
uint32_t preload_threads(const int32_t **cpus);

/* Write down what a call did: into the launcher's counters, and a line for the log. */
void preload_report(const struct pf_mt *mt, const char *name, int32_t pid, int64_t result);

/* The counters in the file that PAGEFERRY_STATS names, in this order. */
struct preload_stats {
	uint64_t calls;
	uint64_t passed;
	uint64_t pages;
	uint64_t bytes;
	uint64_t busy_us;
	uint64_t repeated;
	uint64_t workers;
};

#endif
