/* SPDX-License-Identifier: Apache-2.0 */
/* Inside the user engine: how long an access to a piece may have waited, counted. */
#ifndef PAGEFERRY_STALLS_H
#define PAGEFERRY_STALLS_H

#include <stdbool.h>
#include <stdint.h>

#include "pageferry.h"

/* Below 4 us by the us, then four buckets an octave. */
static inline uint32_t stall_bucket(uint64_t us)
{
	uint32_t octave;

	if (us < 4)
		return (uint32_t)us;
	octave = 63 - (uint32_t)__builtin_clzll(us);
	octave = 4 * (octave - 1) + (uint32_t)(us >> (octave - 2) & 3);
	return octave < PF_STALL_BUCKETS ? octave : PF_STALL_BUCKETS - 1;
}

/* Count one of us in a histogram, with the longest; by many threads. */
static inline void stall_note(uint64_t *stalls, uint64_t *longest, uint64_t us)
{
	uint64_t known = __atomic_load_n(longest, __ATOMIC_RELAXED);

	__atomic_fetch_add(&stalls[stall_bucket(us)], 1, __ATOMIC_RELAXED);
	while (us > known && !__atomic_compare_exchange_n(longest, &known, us, true,
							  __ATOMIC_RELAXED, __ATOMIC_RELAXED))
		;
}

#endif
