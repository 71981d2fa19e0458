/* SPDX-License-Identifier: Apache-2.0 */
/* What is done while calls are made to fail: each function of the header that calls any. */
#ifndef PAGEFERRY_SCENARIOS_H
#define PAGEFERRY_SCENARIOS_H

#include <stdbool.h>
#include <stdint.h>

/* What a call said of itself. */
struct outcome {
	int64_t result;
	uint64_t bytes;		/* that it was asked for; 0: it accounts for none */
	uint64_t done;		/* moved, or where they should be */
	uint64_t told;		/* left, failed or skipped, and said so */
	uint64_t gone;		/* freed, it says */
	int error;		/* an errno that it names, besides the result */
	bool policy_lost;	/* it says that the thread's policy is another one */
};

struct scenario {
	const char *name;
	bool huge;		/* memory in huge pages */
	bool policy;		/* it is to change the memory's policy */
	void (*run)(struct outcome *outcome);
};

extern const struct scenario scenarios[];

/* The memory that it is done with; bytes in two parts for exchange. */
struct memory {
	unsigned char *start;
	uint64_t bytes;
};

extern struct memory memory;

/* What they need of files, before any fault. */
void scenarios_begin(void);

#endif
