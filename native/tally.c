// SPDX-License-Identifier: Apache-2.0
/* The kernel engine's accounts: every page of a batch is counted once, with its outcome. */
#include <errno.h>

#include "kernel_engine.h"

static void set_status(struct moving *moving, const struct batch *batch, uint64_t slot,
		       int32_t status)
{
	if (moving->move->statuses)
		moving->move->statuses[batch->index + slot] = status;
}

void count_moved(struct moving *moving, const struct batch *batch, uint64_t slot)
{
	struct pf_progress *progress = &moving->move->progress;

	add(&progress->bytes_moved, 1ull << batch->shift[slot]);
	add(&progress->pages_moved[batch->kind[slot]], 1);
	set_status(moving, batch, slot, moving->move->target);
}

void count_moved_all(struct moving *moving, uint64_t bytes, const uint64_t *pages)
{
	struct pf_progress *progress = &moving->move->progress;
	int kind;

	if (!bytes)
		return;
	add(&progress->bytes_moved, bytes);
	for (kind = 0; kind < PF_PAGE_KINDS; kind++)
		if (pages[kind])
			add(&progress->pages_moved[kind], pages[kind]);
}

void count_already(struct moving *moving, const struct batch *batch, uint64_t slot)
{
	struct pf_progress *progress = &moving->move->progress;

	add(&progress->bytes_already, 1ull << batch->shift[slot]);
	add(&progress->pages_already[batch->kind[slot]], 1);
	set_status(moving, batch, slot, moving->move->target);
}

void count_elsewhere(struct moving *moving, const struct batch *batch, uint64_t slot,
			    int32_t node)
{
	struct pf_progress *progress = &moving->move->progress;

	add(&progress->bytes_elsewhere, 1ull << batch->shift[slot]);
	add(&progress->pages_elsewhere, 1);
	set_status(moving, batch, slot, node);
}

static void count_gone(struct moving *moving, const struct batch *batch, uint64_t slot,
		       int32_t status)
{
	struct pf_progress *progress = &moving->move->progress;

	add(&progress->bytes_gone, 1ull << batch->shift[slot]);
	add(&progress->pages_gone, 1);
	set_status(moving, batch, slot, status);
}

void count_skipped(struct moving *moving, const struct batch *batch, uint64_t slot)
{
	struct pf_progress *progress = &moving->move->progress;

	add(&progress->bytes_skipped, 1ull << batch->shift[slot]);
	add(&progress->pages_skipped, 1);
	set_status(moving, batch, slot, PF_STATUS_UNKNOWN);
}

static void remember_failure(struct pf_progress *progress, uint64_t address, int error,
			     uint32_t shift)
{
	uint64_t seen = __atomic_fetch_add(&progress->failures_seen, 1, __ATOMIC_RELAXED);

	if (seen >= PF_MAX_FAILURES)
		return;
	progress->failures[seen].address = address;
	progress->failures[seen].error = error;
	progress->failures[seen].shift = (int32_t)shift;
}

void count_failed(struct moving *moving, const struct batch *batch, uint64_t slot,
			 int error)
{
	struct pf_progress *progress = &moving->move->progress;

	add(&progress->bytes_failed, 1ull << batch->shift[slot]);
	add(&progress->failed[error < PF_MAX_ERRNO ? error : EIO], 1);
	remember_failure(progress, batch->address[slot], error, batch->shift[slot]);
	set_status(moving, batch, slot, -error);
}

void count_split(struct moving *moving, const struct batch *batch, uint64_t slot,
		 uint64_t moved, uint64_t first, int error)
{
	struct pf_progress *progress = &moving->move->progress;
	uint64_t failed = (1ull << (batch->shift[slot] - moving->base_shift)) - moved;

	add(&progress->pages_moved[PF_PAGE_BASE], moved);
	add(&progress->bytes_moved, moved << moving->base_shift);
	add(&progress->bytes_failed, failed << moving->base_shift);
	add(&progress->failed[error], failed);
	remember_failure(progress, first, error, moving->base_shift);
	set_status(moving, batch, slot, -error);
}

void count_by_status(struct moving *moving, const struct batch *batch, uint64_t slot,
			    int32_t status)
{
	if (status == moving->move->target)
		count_moved(moving, batch, slot);
	else if (status == -ENOENT || status == -EFAULT)
		count_gone(moving, batch, slot, status);
	else if (status == PF_STATUS_UNKNOWN)
		count_skipped(moving, batch, slot);
	else
		count_failed(moving, batch, slot, status < 0 ? -status : EBUSY);
}
