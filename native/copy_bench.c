// SPDX-License-Identifier: Apache-2.0
/* For experiments: the loop of the STREAM benchmark, and timing without Python in between. */
#include <errno.h>
#include <time.h>

#include "pageferry.h"

/* The loop itself, not the call of memcpy that compilers like to make of it. */
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

static int one_copy(const struct pf_copy_timing *timing, uint64_t at)
{
	char *dst = (char *)timing->dst + at;
	const char *src = (const char *)timing->src + at;

	if (timing->stream) {
		pf_stream_copy((double *)dst, (const double *)src, timing->bytes / 8);
		return 1;
	}
	if (!timing->threads)
		return pf_copy_pages(dst, src, timing->bytes, timing->method);
	return pf_copy_pages_mthread(dst, src, timing->bytes, timing->threads, timing->cpus,
				     timing->method);
}

int pf_copy_time(struct pf_copy_timing *timing)
{
	struct timespec begun, ended;
	uint64_t i;

	clock_gettime(CLOCK_MONOTONIC, &begun);
	for (i = 0; i < timing->count; i++) {
		int done;

		if (timing->at + timing->bytes > timing->room)
			timing->at = 0;
		done = one_copy(timing, timing->at);
		if (done < 0)
			return done;
		timing->at += timing->stride;
	}
	clock_gettime(CLOCK_MONOTONIC, &ended);
	timing->ns = (uint64_t)(ended.tv_sec - begun.tv_sec) * 1000000000 +
		     (uint64_t)ended.tv_nsec - (uint64_t)begun.tv_nsec;
	return 0;
}
