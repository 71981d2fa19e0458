// SPDX-License-Identifier: Apache-2.0
/*
 * mbind(2) with MPOL_MF_MOVE by several threads. The kernel sets the policy of
 * the range first (without moving, it looks at no page), so that new pages come
 * where they belong; then threads move the pages that are elsewhere; and if one
 * of them did not move, or MPOL_MF_STRICT wants an answer about every page, the
 * kernel gets the call as it was and has the last word.
 *
 * Only for a policy with one node: with more, where a page belongs depends on
 * the policy, its index, and the CPU that runs.
 */
#include <unistd.h>

#include "calls.h"
#include "mt_calls.h"
#include "pages.h"

enum { MODE_PREFERRED = 1, MODE_BIND = 2, MODE_PREFERRED_MANY = 5, STRICT = 1 << 0 };

#define FEWEST_BYTES (4ull << 20)

/* The node that every page of the range is to be on, or -1: the kernel knows better. */
static int32_t target_of(uint64_t start, uint64_t length, int32_t mode, const uint64_t *mask,
			 uint64_t maxnode, uint32_t flags)
{
	uint64_t nodes[PF_NODE_WORDS];
	uint64_t page = (uint64_t)sysconf(_SC_PAGESIZE);

	if (!(flags & (MOVE | MOVE_ALL)) || flags & ~(uint32_t)(MOVE | MOVE_ALL | STRICT) ||
	    start % page || length < FEWEST_BYTES || start + length + page < start ||
	    (mode != MODE_BIND && mode != MODE_PREFERRED && mode != MODE_PREFERRED_MANY) ||
	    !read_mask(nodes, mask, maxnode))
		return -1;
	return only_node(nodes);
}

static int64_t run(struct pf_mt *mt, struct mt_mover *mover, uint64_t start, uint64_t length,
		   int32_t mode, const uint64_t *mask, uint64_t maxnode, uint32_t flags)
{
	uint64_t page = (uint64_t)sysconf(_SC_PAGESIZE);
	uint64_t begun = now_us();
	int64_t result;

	result = pf_sys_mbind(start, length, mode, mask, maxnode, 0);
	if (!result)
		mt_mover_add(mover, start, (start + length + page - 1) & ~(page - 1));
	mt_mover_end(mover);
	if (!result && (mover->left || flags & STRICT))
		result = pf_sys_mbind(start, length, mode, mask, maxnode, flags);
	mt_count(mt, begun, mover->pages, mover->bytes, mover->workers);
	return result;
}

int64_t pf_mt_mbind(struct pf_mt *mt, uint64_t start, uint64_t length, int32_t mode,
		    const uint64_t *mask, uint64_t maxnode, uint32_t flags)
{
	struct mt_mover mover = { .left = 0 };
	int32_t target = -1;

	flags = mt_plain_flags(flags);
	if (mt->threads > 1 && mt->threads <= PF_MAX_THREADS)
		target = target_of(start, length, mode, mask, maxnode, flags);
	if (target < 0 || (flags & MOVE_ALL && !may_move_all()))
		return mt_passed(mt, pf_sys_mbind(start, length, mode, mask, maxnode, flags));
	if (mt_mover_begin(&mover, mt, 0, target, NULL, flags & MOVE_ALL))
		return run(mt, &mover, start, length, mode, mask, maxnode, flags);
	mt_mover_end(&mover);
	return mt_passed(mt, pf_sys_mbind(start, length, mode, mask, maxnode, flags));
}
