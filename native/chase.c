// SPDX-License-Identifier: Apache-2.0
/* How long a load takes that has to wait for the one before: latency of memory. */
#include <errno.h>
#include <stdint.h>
#include <time.h>

#include "pageferry.h"

static int64_t now_ns(void)
{
	struct timespec time;

	clock_gettime(CLOCK_MONOTONIC, &time);
	return (int64_t)time.tv_sec * 1000000000 + time.tv_nsec;
}

int64_t pf_chase(uint64_t *place, uint64_t hops)
{
	uint64_t at = *place;
	int64_t begun;

	if (!at || at % sizeof(uint64_t))
		return -EINVAL;
	begun = now_ns();
	for (uint64_t hop = 0; hop < hops; hop++)
		at = *(const volatile uint64_t *)(uintptr_t)at;
	*place = at;
	return now_ns() - begun;
}
