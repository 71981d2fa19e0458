// SPDX-License-Identifier: Apache-2.0
/* The copy of the STREAM benchmark, to compare with: a plain loop, no call of memcpy. */
#include "pageferry.h"

#ifdef __clang__
#define A_LOOP __attribute__((no_builtin("memcpy", "memmove")))
#else
#define A_LOOP __attribute__((optimize("O3", "no-tree-loop-distribute-patterns")))
#endif

A_LOOP void pf_stream_copy(double *restrict a, const double *restrict b, uint64_t count)
{
	for (uint64_t i = 0; i < count; i++)
		a[i] = b[i];
}
