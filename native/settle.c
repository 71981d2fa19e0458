// SPDX-License-Identifier: Apache-2.0
/*
 * What became of the pages of a call. What the system call says is subtle (see
 * do_pages_move in mm/migrate.c):
 *  - it returns > 0 when pages were not moved, and then leaves the status of
 *    all pages of the failing group unwritten, moved or not;
 *  - it gives up at the first such group, so later pages were never tried;
 *  - pages inside a large folio whose head is listed too come back EBUSY
 *    although the folio moved;
 *  - a THP for which the target has no room is split and may move in part.
 * So a page counts as moved only when the kernel names the target node for it,
 * and whatever is not clear is asked again before it is called a failure.
 */
#include <errno.h>

#include "kernel_engine.h"

enum { MPOL_MF_MOVE_FLAG = 1 << 1, MPOL_MF_MOVE_ALL_FLAG = 1 << 2 };

int move_flags(const struct pf_move *move)
{
	int flags = move->flags & PF_MOVE_SHARED ? MPOL_MF_MOVE_ALL_FLAG : MPOL_MF_MOVE_FLAG;

	return move->flags & PF_MOVE_KERNEL_MT ? flags | PF_MPOL_MF_MOVE_MT : flags;
}

/* How many of the base pages of a huge one are on the target; the rest go to left. */
static uint64_t count_base(struct moving *moving, uint64_t start, uint64_t pages, uint64_t *left)
{
	uint64_t moved = 0, done, i;
	uint64_t address[256];
	int32_t status[256];

	for (done = 0; done < pages; done += 256) {
		uint64_t count = pages - done < 256 ? pages - done : 256;

		for (i = 0; i < count; i++)
			address[i] = start + ((done + i) << moving->base_shift);
		if (query_nodes(moving->move->pid, count, address, status))
			return 0;
		for (i = 0; i < count; i++) {
			if (status[i] == moving->move->target)
				moved++;
			else if (done + i - moved < 512)
				left[done + i - moved] = address[i];
		}
	}
	return moved;
}

/*
 * A huge page that would not move whole may have been split and moved in part,
 * when the target had no huge page left; its address then stands for its first
 * base page only. Its base pages tell, and those left behind get a try.
 */
static void settle_huge(struct moving *moving, struct batch *batch, uint32_t slot, int error)
{
	struct pf_move *move = moving->move;
	uint64_t start = batch->address[slot];
	uint64_t pages = 1ull << (batch->shift[slot] - moving->base_shift);
	uint64_t left[512], moved, i;
	int32_t node[512], status[512];
	long result;

	moved = count_base(moving, start, pages, left);
	if (moved && moved < pages && !move_stopped(move)) {
		uint64_t count = pages - moved < 512 ? pages - moved : 512;

		for (i = 0; i < count; i++)
			node[i] = move->target;
		result = sys_move_pages(move->pid, count, left, node, status, move_flags(move));
		if (result == -ENOMEM) {
			error = ENOMEM;
			move_stop(move, ENOMEM);
		}
		moved = count_base(moving, start, pages, left);
	}
	if (moved == pages)
		count_moved(moving, batch, slot);
	else if (!moved)
		count_failed(moving, batch, slot, error);
	else
		count_split(moving, batch, slot, moved, left[0], error);
}

static bool unclear(int32_t status)
{
	return status == PF_STATUS_UNKNOWN || status == -EBUSY || status == -ENOENT ||
	       status == -EFAULT;
}

/*
 * A page that the move could not take (EFAULT) although it has a node is of a
 * kind that does not migrate.
 */
int clear_up(struct moving *moving, struct pending *pending, int32_t *answer)
{
	uint64_t count = 0, i;
	int error;

	for (i = 0; i < pending->count; i++) {
		pending->busy[i] = pending->status[i] == -EBUSY;
		if (unclear(pending->status[i]))
			pending->asked[count++] = pending->address[i];
	}
	if (!count)
		return 0;
	error = query_nodes(moving->move->pid, count, pending->asked, answer);
	if (error)
		return error;
	count = 0;
	for (i = 0; i < pending->count; i++) {
		int32_t now;

		if (!unclear(pending->status[i]))
			continue;
		now = answer[count++];
		if (pending->status[i] == -EFAULT && now >= 0 && now != moving->move->target)
			now = -EINVAL;
		pending->status[i] = now;
	}
	return 0;
}

static void keep(struct pending *pending, uint64_t to, uint64_t from)
{
	pending->slot[to] = pending->slot[from];
	pending->address[to] = pending->address[from];
}

/*
 * Kept pages that the kernel could not even queue go last: each of them ends a
 * group, and after a failure in one group the kernel does not try the next.
 */
uint64_t settle(struct moving *moving, struct batch *batch, struct pending *pending,
		bool absent)
{
	int32_t target = moving->move->target;
	uint64_t before = pending->count;
	uint64_t pages[PF_PAGE_KINDS] = { 0 };
	uint64_t kept = 0, busy = 0, bytes = 0, i;

	for (i = 0; i < before; i++) {
		int32_t status = pending->status[i];
		uint32_t slot = pending->slot[i];

		if ((status >= 0 && status != target) || (absent && status == -ENOENT)) {
			if (!pending->busy[i]) {
				keep(pending, kept++, i);
				continue;
			}
			/* asked and node are free now: the busy ones wait there */
			pending->asked[busy] = pending->address[i];
			pending->node[busy++] = (int32_t)slot;
		} else if (status == target && pending->torn[slot]) {
			settle_huge(moving, batch, slot, EBUSY);
		} else if (status == target) {
			bytes += 1ull << batch->shift[slot];
			pages[batch->kind[slot]]++;
			if (moving->move->statuses)
				moving->move->statuses[batch->index + slot] = target;
		} else {
			count_by_status(moving, batch, slot, status);
		}
	}
	count_moved_all(moving, bytes, pages);
	for (i = 0; i < busy; i++) {
		pending->slot[kept] = (uint32_t)pending->node[i];
		pending->address[kept++] = pending->asked[i];
	}
	pending->count = kept;
	return before - kept;
}

void give_up(struct moving *moving, struct batch *batch, struct pending *pending, int error)
{
	uint64_t i;

	for (i = 0; i < pending->count; i++) {
		if (batch->kind[pending->slot[i]] == PF_PAGE_THP)
			settle_huge(moving, batch, pending->slot[i], error);
		else if (error == EBUSY && move_stopped(moving->move))
			count_skipped(moving, batch, pending->slot[i]);
		else
			count_failed(moving, batch, pending->slot[i], error);
	}
	pending->count = 0;
}

void refuse(struct moving *moving, struct batch *batch, struct pending *pending, int error)
{
	uint64_t i;

	move_stop(moving->move, error);
	for (i = 0; i < pending->count; i++)
		count_skipped(moving, batch, pending->slot[i]);
	pending->count = 0;
}

bool give_up_hugetlb(struct moving *moving, struct batch *batch, struct pending *pending)
{
	uint64_t before = pending->count;
	uint64_t kept = 0, i;

	for (i = 0; i < before; i++) {
		if (batch->kind[pending->slot[i]] == PF_PAGE_HUGETLB)
			count_failed(moving, batch, pending->slot[i], ENOMEM);
		else
			keep(pending, kept++, i);
	}
	pending->count = kept;
	return kept < before;
}
