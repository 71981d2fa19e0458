// SPDX-License-Identifier: Apache-2.0
/*
 * Base pages become huge ones once they are on their node, by MADV_COLLAPSE.
 *
 * Populating huge pages and putting those in would save a copy. But where base
 * pages were taken page by page their empty page table stays, and UFFDIO_MOVE
 * splits a huge page that meets one; and the calls that remove it, mremap(2) and
 * madvise(2), would wait for this very thread to hear of them (see user_put.c).
 * The kernel does all that and checks each page for pins and sharing.
 */
#include <errno.h>
#include <sched.h>
#include <sys/mman.h>

#include "pages.h"
#include "stalls.h"
#include "user_engine.h"

enum { TRIES = 4 };	/* a page may be held for a moment */

static int collapse_one(uint64_t start)
{
	int tries = TRIES;

	while (madvise((void *)(uintptr_t)start, HUGE_BYTES, MADV_COLLAPSE)) {
		if ((errno != EAGAIN && errno != EINTR) || !--tries)
			return errno;
		sched_yield();
	}
	return 0;
}

uint64_t collapse(uint64_t start, uint64_t bytes, struct pf_user_progress *progress)
{
	uint64_t first = (start + HUGE_BYTES - 1) & ~(HUGE_BYTES - 1);
	uint64_t last = (start + bytes) & ~(HUGE_BYTES - 1);
	uint64_t whole = first < last ? last - first : 0;
	uint64_t huge = 0;
	uint64_t at;

	for (at = first; at < last; at += HUGE_BYTES) {
		uint64_t begun = now_us();
		int error = collapse_one(at);

		if (error)
			__atomic_fetch_add(&progress->uncollapsed[error < PF_MAX_ERRNO ? error : 0],
					   HUGE_BYTES, __ATOMIC_RELAXED);
		else
			huge += HUGE_BYTES;
		/* Accesses wait for a part of this time only; the kernel does not say for which. */
		__atomic_fetch_add(&progress->pieces, 1, __ATOMIC_RELAXED);
		stall_note(progress->stalls, &progress->stall_us_max, now_us() - begun);
	}
	__atomic_fetch_add(&progress->bytes_collapsed, huge, __ATOMIC_RELAXED);
	__atomic_fetch_add(&progress->uncollapsed[0], bytes - whole, __ATOMIC_RELAXED);
	return huge;
}
