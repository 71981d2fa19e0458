// SPDX-License-Identifier: Apache-2.0
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "interposer.h"
#include "pageferry.h"
#include "preload.h"
#include "scenarios.h"

enum { BIND = 2, MOVE = 2, HUGE_SHIFT = 21, PAGE_SHIFT = 12, THREADS = 2, MOST_LEFT = 4096 };

struct memory memory;

static int page_map = -1;

static struct pf_extent whole(bool huge)
{
	uint32_t shift = huge ? HUGE_SHIFT : PAGE_SHIFT;

	return (struct pf_extent){
		.start = (uintptr_t)memory.start,
		.pages = memory.bytes >> shift,
		.shift = shift,
		.kind = huge ? PF_PAGE_THP : PF_PAGE_BASE,
	};
}

/* The first errno that something is counted under. */
static int first_named(const uint64_t *by_errno)
{
	for (int i = 0; i < PF_MAX_ERRNO; i++)
		if (by_errno[i])
			return i ? i : -1;
	return 0;
}

/* ---- Engines ------------------------------------------------------------------------ */

static void kernel_engine(struct outcome *outcome, bool huge)
{
	struct pf_extent extent = whole(huge);
	static int32_t statuses[1 << 14];
	struct pf_move move = {
		.blocking = PF_SYNC_LIGHT, .threads = THREADS, .extents = &extent, .n_extents = 1,
		.statuses = statuses, .batch_bytes = 1 << 20,
	};
	const struct pf_progress *p = &move.progress;

	second_node_begin(memory.start, memory.bytes);
	outcome->result = pf_move_run(&move);
	second_node_end();
	outcome->bytes = memory.bytes;
	outcome->done = p->bytes_moved + p->bytes_already;
	outcome->told = p->bytes_failed + p->bytes_skipped;
	outcome->gone = p->bytes_gone;
	outcome->error = first_named(p->failed);
}

static void kernel_base(struct outcome *outcome)
{
	kernel_engine(outcome, false);
}

static void kernel_huge(struct outcome *outcome)
{
	kernel_engine(outcome, true);
}

static void user_engine(struct outcome *outcome, uint32_t way, bool huge, uint32_t flags)
{
	struct pf_extent extent = whole(huge);
	static struct pf_extent left[MOST_LEFT];
	struct pf_user user = {
		.way = way, .flags = flags | PF_USER_AGAIN, .threads = THREADS, .extents = &extent,
		.n_extents = 1, .left = left, .max_left = MOST_LEFT,
		.piece_bytes = huge ? 2 << 20 : 1 << 20,
	};
	const struct pf_user_progress *p = &user.progress;

	outcome->result = pf_user_run(&user);
	outcome->bytes = memory.bytes;
	outcome->done = p->bytes_moved + p->bytes_already;
	outcome->told = p->bytes_left + p->bytes_skipped;
	outcome->gone = p->bytes_gone;
	outcome->error = first_named(p->left);
	outcome->policy_lost = user.policy_lost;
}

static void user_checked(struct outcome *outcome)
{
	user_engine(outcome, PF_USER_CHECKED, false, 0);
}

static void user_populated(struct outcome *outcome)
{
	user_engine(outcome, PF_USER_CHECKED, false, PF_USER_NO_FILL);
}

static void user_huge(struct outcome *outcome)
{
	user_engine(outcome, PF_USER_CHECKED, true, PF_USER_EXACT);
}

static void user_hold(struct outcome *outcome)
{
	user_engine(outcome, PF_USER_HOLD, false, 0);
}

static void user_protect(struct outcome *outcome)
{
	user_engine(outcome, PF_USER_PROTECT, false, 0);
}

/* The pool serves the move, and gets the old pages. */
static void user_pool(struct outcome *outcome)
{
	int reserved = pf_pool_reserve(0, HUGE_SHIFT, memory.bytes, THREADS, NULL);

	user_engine(outcome, PF_USER_CHECKED, true, PF_USER_EXACT);
	pf_pool_release(0, HUGE_SHIFT, UINT64_MAX);
	if (reserved < 0)
		outcome->error = -reserved;
}

static void exchange(struct outcome *outcome)
{
	uint64_t half = memory.bytes / 2;
	struct pf_exchange_pair pair = {
		.a = (uintptr_t)memory.start, .b = (uintptr_t)memory.start + half, .bytes = half,
	};
	struct pf_exchange call = {
		.pairs = &pair, .n_pairs = 1, .threads = THREADS, .flags = PF_EXCHANGE_SAME,
	};

	outcome->result = pf_exchange_run(&call);
	outcome->bytes = half;
	outcome->done = call.bytes_exchanged + call.bytes_same;
	outcome->gone = call.bytes_gone;
	outcome->told = call.bytes_skipped;
	for (int i = 0; i < PF_MAX_ERRNO; i++)
		outcome->told += call.refused[i];
	outcome->error = first_named(call.refused);
	/* Refused as a whole, nothing is counted. */
	if (outcome->result < 0 && outcome->done + outcome->told + outcome->gone == 0)
		outcome->told = half;
}

/* ---- Around them ---------------------------------------------------------------------- */

static void populate(struct outcome *outcome, uint32_t shift)
{
	uint64_t bytes = 8 << 20;
	int64_t start = pf_map(bytes, shift, 0);

	outcome->result = start;
	if (start < 0)
		return;
	outcome->result = pf_populate((uint64_t)start, bytes, 0, shift, 0, THREADS, NULL);
	/* A caller can do no more than ask again. */
	for (int i = 0; i < 300 && pf_unmap((uint64_t)start, bytes); i++)
		outcome->error = EAGAIN;
}

static void populate_base(struct outcome *outcome)
{
	populate(outcome, PAGE_SHIFT);
}

static void populate_huge(struct outcome *outcome)
{
	populate(outcome, HUGE_SHIFT);
}

static void locate(struct outcome *outcome)
{
	struct pf_extent extent = whole(false);
	static struct pf_locate call;

	memset(&call, 0, sizeof(call));
	call.threads = THREADS;
	call.extents = &extent;
	call.n_extents = 1;
	outcome->result = pf_locate_run(&call);
	outcome->bytes = extent.pages;
	outcome->done = call.pages[0][PF_PAGE_BASE];
	outcome->told = call.pages_failed;
	outcome->gone = call.pages_gone;
	if (outcome->result < 0)
		outcome->told = outcome->bytes - outcome->done - outcome->gone;
	outcome->error = call.pages_failed ? EIO : 0;
}

static void survey(struct outcome *outcome, uint32_t method)
{
	static struct pf_extent extents[4096];
	struct pf_survey call = {
		.start = (uintptr_t)memory.start,
		.end = (uintptr_t)memory.start + memory.bytes,
		.pagemap_fd = page_map,
		.kpageflags_fd = -1, .method = method, .flags = PF_SURVEY_TOUCHED,
		.huge_shift = HUGE_SHIFT, .huge_kind = PF_PAGE_THP,
	};
	int64_t found = 0;

	while (call.start < call.end && found >= 0)
		found = pf_survey_next(&call, extents, 4096);
	outcome->result = found < 0 ? found : 0;
	outcome->bytes = memory.bytes;
	outcome->done = call.bytes_present;
	if (found < 0)
		outcome->told = memory.bytes - call.bytes_present;
}

static void survey_scan(struct outcome *outcome)
{
	survey(outcome, PF_SURVEY_SCAN);
}

static void survey_pagemap(struct outcome *outcome)
{
	survey(outcome, PF_SURVEY_PAGEMAP);
}

static void survey_query(struct outcome *outcome)
{
	survey(outcome, PF_SURVEY_QUERY);
}

static void copying(struct outcome *outcome)
{
	uint64_t half = memory.bytes / 2;
	struct pf_copy_tuning tuning;

	/* One half is what the other is, when it is checked: see fill(). */
	outcome->result = pf_copy_pages_mthread(memory.start, memory.start, 0, THREADS, NULL,
						PF_COPY_AUTO);
	if (outcome->result >= 0)
		outcome->result = pf_copy_pages_mthread(memory.start + half, memory.start, half,
							THREADS, NULL, PF_COPY_AUTO);
	if (outcome->result >= 0)
		outcome->result = pf_copy_measure(&tuning, NULL);
}

/* ---- Preload library ---------------------------------------------------------------------- */

/* Defined in preload.c. */
long move_pages(long pid, long count, long pages, long nodes, long status, long flags);
long mbind(long start, long length, long mode, long mask, long maxnode, long flags);
long migrate_pages(long pid, long maxnode, long from, long to);

void scenarios_begin(void)
{
	static const char *stats = "/dev/shm/pageferry-faults-stats";
	/* Not truncated: another scenario may run beside this one, and has it mapped. */
	int fd = open(stats, O_RDWR | O_CREAT | O_CLOEXEC, 0600);

	if (fd >= 0 && !ftruncate(fd, 1 << PAGE_SHIFT))
		preload_settings.stats = stats;
	if (fd >= 0)
		close(fd);
	preload_settings.mode = PRELOAD_ALWAYS;
	preload_settings.threads = THREADS;
	preload_settings.log = "/dev/null";
	preload_settings.memory_nodes[0] = 3;
	page_map = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC);
}

static void preload_move_pages(struct outcome *outcome)
{
	static uint64_t pages[1 << 14];
	static int32_t nodes[1 << 14], status[1 << 14];
	uint64_t count = memory.bytes >> PAGE_SHIFT;

	for (uint64_t i = 0; i < count; i++) {
		pages[i] = (uintptr_t)memory.start + (i << PAGE_SHIFT);
		status[i] = PF_STATUS_UNKNOWN;
	}
	second_node_begin(memory.start, memory.bytes);
	outcome->result = move_pages(0, (long)count, (long)pages, (long)nodes, (long)status, MOVE);
	if (outcome->result < 0)
		outcome->result = -errno;
	second_node_end();
	/* Above zero so many pages stayed where they are, as the kernel has it. */
	outcome->bytes = count;
	if (outcome->result > 0)
		outcome->error = EBUSY;
	for (uint64_t i = 0; i < count; i++)
		outcome->done += status[i] == 0;
	outcome->told = count - outcome->done;
}

static void preload_mbind(struct outcome *outcome)
{
	static uint64_t mask[PF_NODE_WORDS] = { 1 };

	second_node_begin(memory.start, memory.bytes);
	outcome->result = mbind((long)memory.start, (long)memory.bytes, BIND, (long)mask,
				PF_MAX_NODES + 1, MOVE);
	if (outcome->result < 0)
		outcome->result = -errno;
	second_node_end();
}

static void preload_migrate_pages(struct outcome *outcome)
{
	static uint64_t from[PF_NODE_WORDS] = { 1 }, to[PF_NODE_WORDS] = { 1 };

	outcome->result = migrate_pages(0, PF_MAX_NODES + 1, (long)from, (long)to);
	if (outcome->result < 0)
		outcome->result = -errno;
}

const struct scenario scenarios[] = {
	{ "kernel engine, base pages", false, false, kernel_base },
	{ "kernel engine, huge pages", true, false, kernel_huge },
	{ "user engine, checked", false, false, user_checked },
	{ "user engine, populated", false, false, user_populated },
	{ "user engine, huge pages", true, false, user_huge },
	{ "user engine, pool", true, false, user_pool },
	{ "user engine, hold", false, false, user_hold },
	{ "user engine, protect", false, false, user_protect },
	{ "exchange", false, false, exchange },
	{ "populate, base pages", false, false, populate_base },
	{ "populate, huge pages", false, false, populate_huge },
	{ "locate", false, false, locate },
	{ "survey, PAGEMAP_SCAN", false, false, survey_scan },
	{ "survey, pagemap", false, false, survey_pagemap },
	{ "survey, query", false, false, survey_query },
	{ "copy", false, false, copying },
	{ "preload, move_pages", false, false, preload_move_pages },
	{ "preload, mbind", false, true, preload_mbind },
	{ "preload, migrate_pages", false, false, preload_migrate_pages },
	{ NULL, false, false, NULL },
};
