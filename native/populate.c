// SPDX-License-Identifier: Apache-2.0
/*
 * Populate memory with pages of one node and size, with many threads.
 *
 * The policy is MPOL_PREFERRED, never MPOL_BIND: where a node is full, a fault
 * under MPOL_BIND wakes the OOM killer. With a preferred node the kernel takes
 * pages from elsewhere instead, which is seen by asking, slice by slice, and
 * put right with move_pages(2), which reclaims memory of the node but kills
 * nobody. So a full node ends in -ENOMEM.
 */
#include <errno.h>
#include <fcntl.h>
#include <linux/mman.h>
#include <pthread.h>
#include <stdbool.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "calls.h"
#include "crew.h"
#include "pages.h"
#include "populate.h"

#ifndef MADV_POPULATE_WRITE
#define MADV_POPULATE_WRITE 23	/* Linux 5.14 */
#endif

enum {
	MPOL_PREFERRED = 1,
	MPOL_MF_MOVE = 2,
	SLICE_PAGES = 2048,	/* most in a slice; 8 MiB of 4 KiB pages */
	SLICE_SHIFT = 23,
	PAGE_SHIFT_MAX = 40,
};

struct populating {
	uint64_t start;
	uint64_t end;
	uint64_t next;		/* claimed with atomic additions */
	uint64_t slice;
	int32_t node;
	uint32_t shift;
	int pagemap;		/* to see whether pages are huge, or -1 */
	int error;
	uint32_t unknown;	/* the kernel did not say where some pages are */
};

uint32_t base_page_shift(void)
{
	return (uint32_t)__builtin_ctzl((unsigned long)sysconf(_SC_PAGESIZE));
}

int64_t pf_map(uint64_t bytes, uint32_t shift, uint32_t flags)
{
	bool hugetlb = flags & PF_POPULATE_HUGETLB;
	uint64_t align = (uint64_t)1 << (shift & 63);
	uint64_t extra = !hugetlb && shift > base_page_shift() ? align : 0;
	uint64_t start, first;
	void *map;

	if (!bytes || shift < base_page_shift() || shift > PAGE_SHIFT_MAX)
		return -EINVAL;
	if (bytes > INT64_MAX - extra)
		return -ENOMEM;
	map = mmap(NULL, bytes + extra, PROT_READ | PROT_WRITE,
		   MAP_PRIVATE | MAP_ANONYMOUS |
		   (hugetlb ? MAP_HUGETLB | (int)(shift << MAP_HUGE_SHIFT) : 0), -1, 0);
	if (map == MAP_FAILED)
		return -errno;
	start = (uint64_t)(uintptr_t)map;
	if (!extra)
		return (int64_t)start;
	first = (start + align - 1) & ~(align - 1);
	if (first > start)
		unmap_memory(map, first - start);
	if (start + extra > first)
		unmap_memory((void *)(uintptr_t)(first + bytes), start + extra - first);
	return (int64_t)first;
}

int pf_unmap(uint64_t start, uint64_t bytes)
{
	return munmap((void *)(uintptr_t)start, bytes) ? -errno : 0;
}

int pf_prefer_node(uint64_t start, uint64_t bytes, int32_t node)
{
	unsigned long mask[PF_MAX_NODES / (8 * sizeof(unsigned long)) + 1] = { 0 };
	const int bits = 8 * sizeof(unsigned long);

	if (node < 0 || node >= PF_MAX_NODES)
		return -EINVAL;
	mask[node / bits] = 1ul << node % bits;
	if (syscall(SYS_mbind, (unsigned long)start, (unsigned long)bytes, MPOL_PREFERRED, mask,
		    (unsigned long)PF_MAX_NODES + 1, 0u))
		return -errno;
	return 0;
}

static void stop(struct populating *populating, int error)
{
	int none = 0;

	__atomic_compare_exchange_n(&populating->error, &none, error, false, __ATOMIC_RELAXED,
				    __ATOMIC_RELAXED);
}

/* Before Linux 5.14 there is only touching. Adding nothing is safe for any content. */
static void touch(uint64_t start, uint64_t bytes)
{
	uint64_t size = (uint64_t)1 << base_page_shift();
	uint64_t at;

	for (at = start; at < start + bytes; at += size)
		__atomic_fetch_or((uint8_t *)(uintptr_t)at, 0, __ATOMIC_RELAXED);
}

static int populate(uint64_t start, uint64_t bytes)
{
	for (;;) {
		if (!madvise((void *)(uintptr_t)start, bytes, MADV_POPULATE_WRITE))
			return 0;
		/* A kernel that knows the advice takes it for nothing at all. */
		if (errno == EINVAL && madvise((void *)(uintptr_t)start, 0, MADV_POPULATE_WRITE)) {
			touch(start, bytes);
			return 0;
		}
		/* EFAULT stands for SIGBUS: no hugetlb page left. */
		if (errno == EFAULT)
			return -ENOMEM;
		if (errno != EINTR && errno != EAGAIN)
			return -errno;
	}
}

/* Keep the pages that are elsewhere. Their number, or -errno when the kernel is silent. */
static int64_t elsewhere(const struct populating *populating, uint64_t *pages, uint64_t count)
{
	int32_t status[SLICE_PAGES];
	uint64_t i, left = 0;
	int error = query_nodes(0, count, pages, status);

	if (error < 0)
		return error;
	for (i = 0; i < count; i++)
		if (status[i] != populating->node)
			pages[left++] = pages[i];
	return (int64_t)left;
}

/* Bring the pages of a slice to the node where the kernel took them from elsewhere. */
static int settle_on_node(struct populating *populating, uint64_t start, uint64_t bytes)
{
	uint64_t pages[SLICE_PAGES];
	int32_t nodes[SLICE_PAGES], status[SLICE_PAGES];
	uint64_t count = bytes >> populating->shift;
	int64_t left;
	uint64_t i = 0;

	do {
		pages[i] = start + (i << populating->shift);
	} while (++i < count);
	left = elsewhere(populating, pages, count);
	if (left > 0) {
		for (i = 0; i < (uint64_t)left; i++)
			nodes[i] = populating->node;
		sys_move_pages(0, (uint64_t)left, pages, nodes, status, MPOL_MF_MOVE);
		left = elsewhere(populating, pages, (uint64_t)left);
	}
	if (left > 0)
		return -ENOMEM;
	if (left == -EPERM || left == -ENOSYS) {
		__atomic_store_n(&populating->unknown, 1, __ATOMIC_RELAXED);
		return 0;
	}
	return (int)left;
}

/* -ENOMEM when a page of the slice is not huge. Kernels without PAGEMAP_SCAN are trusted. */
static int all_huge(const struct populating *populating, uint64_t start, uint64_t bytes)
{
	struct pf_survey survey = {
		.start = start,
		.end = start + bytes,
		.pagemap_fd = populating->pagemap,
		.kpageflags_fd = -1,
		.method = PF_SURVEY_SCAN,
		.huge_shift = populating->shift,
		.huge_kind = PF_PAGE_THP,
	};
	struct pf_extent extent;

	if (populating->pagemap < 0)
		return 0;
	while (survey.start < survey.end) {
		int64_t found = pf_survey_next(&survey, &extent, 1);

		if (found < 0)
			return 0;
		if (found && extent.kind != PF_PAGE_THP)
			return -ENOMEM;
	}
	return survey.bytes_present == bytes ? 0 : -ENOMEM;
}

static void populate_slices(void *arg, uint32_t worker)
{
	struct populating *populating = arg;

	(void)worker;
	while (!__atomic_load_n(&populating->error, __ATOMIC_RELAXED) && crew_go_on()) {
		uint64_t start = __atomic_fetch_add(&populating->next, populating->slice,
						    __ATOMIC_RELAXED);
		uint64_t bytes;
		int error;

		if (start >= populating->end)
			break;
		bytes = populating->end - start;
		if (bytes > populating->slice)
			bytes = populating->slice;
		error = populate(start, bytes);
		if (!error)
			error = settle_on_node(populating, start, bytes);
		if (!error)
			error = all_huge(populating, start, bytes);
		if (error)
			stop(populating, error);
	}
}

static int run(uint64_t start, uint64_t bytes, int32_t node, uint32_t shift, uint32_t flags,
	       uint32_t threads, const int32_t *cpus)
{
	uint32_t base = base_page_shift();
	struct populating populating = {
		.start = start,
		.end = start + bytes,
		.next = start,
		.node = node,
		.shift = shift,
		.pagemap = -1,
	};
	bool huge = shift > base && !(flags & PF_POPULATE_HUGETLB);
	uint64_t slices;
	int error;

	if (shift < base || shift > PAGE_SHIFT_MAX || !threads || threads > PF_MAX_THREADS ||
	    start > UINT64_MAX - bytes || (start | bytes) & (((uint64_t)1 << shift) - 1))
		return -EINVAL;
	if (!bytes)
		return 0;
	error = pf_prefer_node(start, bytes, node);
	/* Forbidden, or a kernel without NUMA: where the pages are is asked all the same. */
	if (error && error != -EPERM && error != -ENOSYS)
		return error;
	if (!(flags & PF_POPULATE_HUGETLB) &&
	    madvise((void *)(uintptr_t)start, bytes, huge ? MADV_HUGEPAGE : MADV_NOHUGEPAGE) &&
	    huge)	/* a kernel without THP has no need of the second */
		return -errno;
	if (flags & PF_POPULATE_LATER)
		return 0;
	if (huge)
		populating.pagemap = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC);
	populating.slice = (uint64_t)1 << (shift > SLICE_SHIFT ? shift : SLICE_SHIFT);
	slices = (bytes + populating.slice - 1) / populating.slice;
	if (threads > slices)
		threads = (uint32_t)slices;
	error = pf_crew_run(threads, cpus, populate_slices, &populating, NULL, NULL, 0);
	if (populating.pagemap >= 0)
		close(populating.pagemap);
	if (error < 0)
		return error;
	return populating.error ? populating.error : (int)populating.unknown;
}

int pf_populate(uint64_t start, uint64_t bytes, int32_t node, uint32_t shift, uint32_t flags,
		uint32_t threads, const int32_t *cpus)
{
	int cancelling, result;

	/* A thread that ended here would leave a file open. */
	pthread_setcancelstate(PTHREAD_CANCEL_DISABLE, &cancelling);
	result = run(start, bytes, node, shift, flags, threads, cpus);
	pthread_setcancelstate(cancelling, NULL);
	return result;
}
