// SPDX-License-Identifier: Apache-2.0
/*
 * The user engine as a C program uses it, alone with the memory: every way and
 * page size, what stays as it was, what is refused. With one node the pages
 * are moved to where they are: that they are others is seen by their frames.
 * Usage: user_engine [MIB], by default with 24 MiB of it at a time.
 */
#include <errno.h>
#include <signal.h>
#include <sys/syscall.h>
#include <sys/wait.h>

#include "mapping.h"
#include "user_memory.h"

enum { MOST_MIB = 24, MOST_PAGES = MOST_MIB << 8 };

static size_t bytes = (size_t)MOST_MIB << 20, pages = MOST_PAGES;

static int nodes[2];
static int n_nodes;
static struct pf_extent left[MAX_LEFT];
static uint64_t frames_before[MOST_PAGES], frames_after[MOST_PAGES];

static const char *way_name(uint32_t way)
{
	static const char *const names[] = { "", "checked", "hold", "protect" };

	return names[way];
}

/* How many pages have another frame now. Frames are for root; else all of them. */
static size_t changed_frames(void)
{
	size_t count = 0;

	for (size_t i = 0; i < pages; i++) {
		uint64_t before = frames_before[i] & PAGEMAP_FRAME;
		uint64_t after = frames_after[i] & PAGEMAP_FRAME;

		CHECK(frames_after[i] & PAGEMAP_PRESENT);
		count += before != after || (!before && !after);
	}
	return count;
}

static void moves(uint32_t way, bool huge, uint32_t threads, uint32_t flags)
{
	unsigned char *memory = memory_new(bytes, huge);
	struct pf_extent extent = extent_of(memory, bytes, huge);
	char before[512], after[512];
	struct pf_user call;

	CHECK(!madvise(memory, bytes, MADV_DONTDUMP));
	fill(memory, bytes, 1);
	for (int round = 0; round < 3; round++) {
		int maps = mappings_in(memory, bytes, before, sizeof(before));

		pagemap(memory, pages, frames_before);
		call = user_call(nodes[(round + 1) % n_nodes], way, threads, &extent, 1, left);
		call.flags |= flags;
		CHECK(pf_user_run(&call) == 0);
		pagemap(memory, pages, frames_after);
		check_fill(memory, bytes, 1);
		if (call.progress.bytes_left)
			fprintf(stderr, "%s, huge %d: left %" PRIu64 ", EINVAL %" PRIu64
				", ENOMEM %" PRIu64 ", EBUSY %" PRIu64 "\n", way_name(way), huge,
				call.progress.bytes_left, call.progress.left[EINVAL],
				call.progress.left[ENOMEM], call.progress.left[EBUSY]);
		CHECK(call.progress.bytes_moved == bytes);
		CHECK(call.progress.pages_moved[huge] == extent.pages);
		CHECK(call.n_left == 0 && call.progress.bytes_left == 0);
		CHECK(call.progress.pieces > 0);
		CHECK(changed_frames() == pages);
		CHECK(mappings_in(memory, bytes, after, sizeof(after)) == maps);
		CHECK(!strcmp(before, after));
	}
	CHECK(!munmap(memory, bytes));
}

/* Huge pages become base pages on the way, also where they are already; and back. */
static void splits(uint32_t way)
{
	unsigned char *memory = memory_new(bytes, true);
	struct pf_extent extent = extent_of(memory, bytes, true);
	struct pf_user call;

	fill(memory, bytes, 2);
	call = user_call(nodes[0], way, 2, &extent, 1, left);
	call.page_shift = 12;
	CHECK(pf_user_run(&call) == 0);
	CHECK(call.progress.bytes_moved == bytes);
	CHECK(call.progress.pages_moved[PF_PAGE_BASE] == pages);
	check_fill(memory, bytes, 2);
	/* They are moved as base pages now; as huge ones they would be split. */
	extent = extent_of(memory, bytes, false);
	call = user_call(nodes[0], way, 2, &extent, 1, left);
	CHECK(pf_user_run(&call) == 0);
	CHECK(call.progress.bytes_moved == bytes);
	check_fill(memory, bytes, 2);
	/* In every way the same, and each byte takes its time under emulation. */
	if (way == PF_USER_CHECKED && pf_user_features() & PF_USER_HAS_COLLAPSE) {
		call = user_call(nodes[n_nodes - 1], way, 2, &extent, 1, left);
		call.page_shift = 21;
		CHECK(pf_user_run(&call) == 0);
		CHECK(call.progress.bytes_moved == bytes);
		CHECK(call.progress.bytes_collapsed == bytes);
		CHECK(call.progress.pages_moved[PF_PAGE_THP] == bytes / HUGE);
		CHECK(!call.progress.pages_moved[PF_PAGE_BASE]);
		check_fill(memory, bytes, 2);
		extent = extent_of(memory, bytes, true);
		call = user_call(nodes[0], way, 2, &extent, 1, left);
		CHECK(pf_user_run(&call) == 0);
		CHECK(call.progress.pages_moved[PF_PAGE_THP] == bytes / HUGE);
	}
	CHECK(!munmap(memory, bytes));
}

/* Absent pages stay absent, and the ones between them are moved. */
static void absent(uint32_t way)
{
	unsigned char *memory = memory_new(bytes, false);
	struct pf_extent extent = extent_of(memory, bytes, false);
	struct pf_user call;
	size_t gone = 0;

	fill(memory, bytes, 3);
	for (size_t i = 0; i < pages; i += 97, gone++)
		CHECK(!madvise(memory + i * PAGE, PAGE, MADV_DONTNEED));
	call = user_call(nodes[n_nodes - 1], way, 2, &extent, 1, left);
	CHECK(pf_user_run(&call) == 0);
	CHECK(call.progress.bytes_moved + call.progress.bytes_gone == bytes);
	if (way == PF_USER_CHECKED) {
		CHECK(call.progress.bytes_gone == gone * PAGE);
		pagemap(memory, pages, frames_after);
		for (size_t i = 0; i < pages; i++)
			CHECK(!(frames_after[i] & PAGEMAP_PRESENT) == !(i % 97));
	}
	for (size_t i = 0; i < pages; i++)
		for (size_t k = i * PAGE; k < (i + 1) * PAGE; k++)
			CHECK(memory[k] == (i % 97 ? byte_at(k, 3) : 0));
	CHECK(!munmap(memory, bytes));
}

/* Pages on the target are found, and left alone, unless asked for. */
static void already(void)
{
	unsigned char *memory = memory_new(bytes, false);
	struct pf_extent extent = extent_of(memory, bytes, false);
	struct pf_user call;

	fill(memory, bytes, 4);
	call = user_call(nodes[0], PF_USER_CHECKED, 2, &extent, 1, left);
	CHECK(pf_user_run(&call) == 0);
	call = user_call(nodes[0], PF_USER_CHECKED, 2, &extent, 1, left);
	call.flags = PF_USER_EXACT;
	CHECK(pf_user_run(&call) == 0);
	CHECK(call.progress.bytes_already == bytes && !call.progress.bytes_moved);
	CHECK(call.progress.pages_already[PF_PAGE_BASE] == pages);
	check_fill(memory, bytes, 4);
	CHECK(!munmap(memory, bytes));
}

static void policy_stays(void)
{
	unsigned char *memory = memory_new(bytes, false);
	struct pf_extent extent = extent_of(memory, bytes, false);
	unsigned long mask = 1ul << nodes[0], seen = 0;
	struct pf_user call;
	int mode = -1;

	CHECK(!syscall(SYS_mbind, memory, bytes / 2, 2, &mask, 64ul, 0u));
	fill(memory, bytes, 5);
	call = user_call(nodes[n_nodes - 1], PF_USER_CHECKED, 2, &extent, 1, left);
	CHECK(pf_user_run(&call) == 0);
	/* The piece across the border of the two mappings is for another engine. */
	CHECK(call.progress.bytes_moved + call.progress.bytes_left == bytes);
	CHECK(call.progress.bytes_moved >= bytes / 2);
	check_fill(memory, bytes, 5);
	CHECK(!syscall(SYS_get_mempolicy, &mode, &seen, 64ul, memory, 2ul));
	CHECK(mode == 2 && seen == mask);
	CHECK(!syscall(SYS_get_mempolicy, &mode, NULL, 0ul, memory + bytes - 1, 2ul));
	CHECK(mode == 0);
	CHECK(!syscall(SYS_get_mempolicy, &mode, NULL, 0ul, NULL, 0ul));
	CHECK(mode == 0);	/* the thread's own is back, too */
	CHECK(!munmap(memory, bytes));
}

static void expect_left(unsigned char *memory, size_t size, uint32_t way, uint32_t threads,
			int error)
{
	struct pf_extent extent = extent_of(memory, size, false);
	struct pf_user call = user_call(nodes[n_nodes - 1], way, threads, &extent, 1, left);
	uint64_t listed = 0;

	CHECK(pf_user_run(&call) == 0);
	for (uint64_t i = 0; i < call.n_left; i++)
		listed += left[i].pages << left[i].shift;
	if (call.progress.left[error] != size || listed != size)
		fprintf(stderr, "way %u: error %d: %" PRIu64 " left, %" PRIu64 " listed, not %zu\n",
			way, error, call.progress.left[error], listed, size);
	CHECK(call.progress.left[error] == size);
	CHECK(call.progress.bytes_left == size && listed == size);
	CHECK(!call.progress.bytes_moved);
}

static void refuses(void)
{
	unsigned char *memory = memory_new(HUGE, false);
	unsigned char *other;
	int fd = memfd_create("pageferry", MFD_CLOEXEC);
	int status;
	pid_t child;
	int pipes[2];
	char byte;

	fill(memory, HUGE, 6);
	CHECK(!mprotect(memory, HUGE, PROT_READ));
	expect_left(memory, HUGE, PF_USER_CHECKED, 2, EINVAL);
	check_fill(memory, HUGE, 6);
	CHECK(!mprotect(memory, HUGE, PROT_READ | PROT_WRITE));
	/* The call itself: the sanitizers have an mlock of their own, which does nothing. */
	if (!syscall(SYS_mlock, memory, (size_t)HUGE)) {
		expect_left(memory, HUGE, PF_USER_CHECKED, 2, EINVAL);
		check_fill(memory, HUGE, 6);
		CHECK(!syscall(SYS_munlock, memory, (size_t)HUGE));
	}
	/* Shared with a child that lives. */
	CHECK(!pipe(pipes));
	child = fork();
	CHECK(child >= 0);
	if (!child) {
		close(pipes[1]);
		if (read(pipes[0], &byte, 1) == 0)
			check_fill(memory, HUGE, 6);
		_exit(0);
	}
	close(pipes[0]);
	expect_left(memory, HUGE, PF_USER_CHECKED, 2, EBUSY);
	check_fill(memory, HUGE, 6);
	close(pipes[1]);
	CHECK(waitpid(child, &status, 0) == child && !status);
	CHECK(!munmap(memory, HUGE));

	CHECK(fd >= 0 && !ftruncate(fd, HUGE));
	other = mmap(NULL, HUGE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	CHECK(other != MAP_FAILED);
	fill(other, HUGE, 7);
	expect_left(other, HUGE, PF_USER_CHECKED, 2, EINVAL);
	check_fill(other, HUGE, 7);
	CHECK(!munmap(other, HUGE));
	close(fd);
}

/*
 * The stack it runs on, and variables of the program. A helper may take the
 * stack of a caller that has not begun, so there is none. In a function of its
 * own: with a sanitizer the frame of one that holds several calls is so large
 * that its other end is beyond what the engine needs.
 */
static __attribute__((noinline)) void refuses_itself(void)
{
	unsigned char *other = (unsigned char *)((uintptr_t)&other & -PAGE);

	expect_left(other - PAGE, 2 * PAGE, PF_USER_CHECKED, 1, EDEADLK);
	other = (unsigned char *)(((uintptr_t)frames_before + PAGE) & -PAGE);
	expect_left(other, 2 * PAGE, PF_USER_CHECKED, 1, EDEADLK);
}

static int cancel_at_once(void *arg)
{
	(void)arg;
	return 1;
}

static void cancelled(uint32_t threads)
{
	unsigned char *memory = memory_new(bytes, false);
	struct pf_extent extent = extent_of(memory, bytes, false);
	struct pf_user call;
	int result;

	fill(memory, bytes, 8);
	call = user_call(nodes[n_nodes - 1], PF_USER_CHECKED, threads, &extent, 1, left);
	call.poll = cancel_at_once;
	call.poll_us = 1;
	call.piece_bytes = 64 << 10;
	result = pf_user_run(&call);
	/* A helper may have done all of it before the caller, which polls, had a CPU. */
	CHECK(result == -ECANCELED || (!result && threads > 1));
	CHECK(call.progress.bytes_skipped > 0 || threads > 1);
	CHECK(call.progress.bytes_moved + call.progress.bytes_skipped == bytes);
	check_fill(memory, bytes, 8);
	CHECK(!munmap(memory, bytes));
}

/* Pages of the pool are taken, and old ones given to it. */
static void pool(bool huge)
{
	unsigned char *memory = memory_new(bytes, huge);
	struct pf_extent extent = extent_of(memory, bytes, huge);
	int from = nodes[0], to = nodes[n_nodes - 1];
	uint32_t shift = huge ? 21 : 12;
	struct pf_user call;

	fill(memory, bytes, 9);
	call = user_call(from, PF_USER_CHECKED, 1, &extent, 1, left);
	CHECK(pf_user_run(&call) == 0);
	CHECK(pf_pool_reserve(to, shift, bytes, 1, NULL) == 0);
	if (to != from)
		CHECK(pf_pool_reserve(from, shift, bytes, 1, NULL) == 0);
	for (int round = 0; round < 3; round++) {
		call = user_call(round % 2 ? from : to, PF_USER_CHECKED, 2, &extent, 1, left);
		call.flags |= PF_USER_EXACT;
		CHECK(pf_user_run(&call) == 0);
		CHECK(call.progress.bytes_moved == bytes);
		CHECK(call.progress.bytes_pooled > 0);
		check_fill(memory, bytes, 9);
		/* What came from the pool of one node has been given to that of the other. */
		CHECK(pf_pool_bytes(round % 2 ? to : from, shift) > 0);
	}
	CHECK(pf_pool_release(to, shift, bytes) >= 0);
	if (to != from)
		CHECK(pf_pool_release(from, shift, bytes) >= 0);
	CHECK(!munmap(memory, bytes));
}

/* A heap that is moved may hold the very call: nothing of it is touched while a piece is away. */
static void the_call_itself(uint32_t way)
{
	unsigned char *memory = memory_new(HUGE, false);
	struct pf_extent *extent = (struct pf_extent *)(memory + PAGE);
	struct pf_user *call = (struct pf_user *)(memory + 2 * PAGE);

	fill(memory, HUGE, 6);
	for (int round = 0; round < 4; round++) {
		*extent = extent_of(memory, HUGE, false);
		*call = user_call(nodes[round % n_nodes], way, 2, extent, 1,
				  (struct pf_extent *)(memory + 16 * PAGE));
		call->piece_bytes = round % 2 ? 64 << 10 : 0;
		if (round > 1 && way_works(way, true))
			call->flags |= PF_USER_NO_FILL;
		CHECK(pf_user_run(call) == 0);
		CHECK(call->progress.bytes_moved == HUGE);
	}
	CHECK(!munmap(memory, HUGE));
}

/* However small a piece is, the mapping is one again afterwards. */
static void pieces_of_one_page(uint32_t way)
{
	unsigned char *memory = memory_new(HUGE, false);
	struct pf_extent extents[16];
	struct pf_user call;
	int maps;

	fill(memory, HUGE, 7);
	for (size_t i = 0; i < 16; i++)
		extents[i] = extent_of(memory + 3 * i * PAGE, PAGE, false);
	maps = mappings_in(memory, HUGE, NULL, 0);
	for (int round = 0; round < 4; round++) {
		call = user_call(nodes[round % n_nodes], way, 2, extents, 16, left);
		if (round > 1 && way_works(way, true))
			call.flags |= PF_USER_NO_FILL;
		CHECK(pf_user_run(&call) == 0);
		CHECK(call.progress.bytes_moved + call.progress.bytes_already == 16 * PAGE);
		CHECK(mappings_in(memory, HUGE, NULL, 0) == maps);
	}
	check_fill(memory, HUGE, 7);
	CHECK(!munmap(memory, HUGE));
}

/* Of a structure without a size the kernel says EINVAL, where it can be asked. */
static bool mappings_can_be_asked_for(void)
{
	struct mapping_query nothing = { .size = 0 };
	int maps = open("/proc/self/maps", O_RDONLY);
	int result = ioctl(maps, MAPPING_QUERY, &nothing);
	int error = errno;

	CHECK(result && !close(maps));
	return error != ENOTTY;
}

/*
 * Extents that are in two mappings, against the rule, are left. Half of a piece would be the whole
 * of a mapping: without what those lose with their pages they would stay cut where the piece ended.
 */
static void borders_in_pieces(uint32_t way)
{
	unsigned char *memory = memory_new(HUGE, false);
	struct pf_extent extents[] = {
		extent_of(memory + 8 * PAGE, 8 * PAGE, false),
		extent_of(memory + 40 * PAGE, 2 * PAGE, false),
		extent_of(memory + 60 * PAGE, 9 * PAGE, false),
	};
	struct pf_user call;

	fill(memory, HUGE, 8);
	CHECK(!madvise(memory + 12 * PAGE, 20 * PAGE, MADV_DONTDUMP));
	CHECK(!madvise(memory + 41 * PAGE, 10 * PAGE, MADV_DONTDUMP));
	CHECK(!madvise(memory + 64 * PAGE, 10 * PAGE, MADV_DONTDUMP));
	CHECK(mappings_in(memory, HUGE, NULL, 0) == 7);
	for (int round = 0; round < 4; round++) {
		call = user_call(nodes[round % n_nodes], way, 2, extents, 3, left);
		if (round > 1 && way_works(way, true))
			call.flags |= PF_USER_NO_FILL;
		CHECK(pf_user_run(&call) == 0);
		check_fill(memory, HUGE, 8);
		if (!mappings_can_be_asked_for())
			continue;
		CHECK(call.progress.left[EINVAL] + call.progress.bytes_already == 19 * PAGE);
		CHECK(mappings_in(memory, HUGE, NULL, 0) == 7);
	}
	CHECK(!munmap(memory, HUGE));
}

static void bad_calls(void)
{
	struct pf_user call = user_call(0, 4, 1, NULL, 0, left);

	CHECK(pf_user_run(&call) == -EINVAL);
	call = user_call(0, PF_USER_HOLD, 0, NULL, 0, left);
	CHECK(pf_user_run(&call) == -EINVAL);
	call = user_call(-1, PF_USER_HOLD, 1, NULL, 0, left);
	CHECK(pf_user_run(&call) == -EINVAL);
	call = user_call(0, PF_USER_HOLD, 1, NULL, 0, left);
	call.page_shift = 20;
	CHECK(pf_user_run(&call) == -EINVAL);
	call = user_call(0, PF_USER_HOLD, 1, NULL, 0, left);
	call.copy_method = PF_COPY_METHODS;
	CHECK(pf_user_run(&call) == -EINVAL);
	call = user_call(0, PF_USER_HOLD, 1, NULL, 0, left);
	CHECK(pf_user_run(&call) == 0);
}

int main(int argc, char **argv)
{
	int64_t features = pf_user_features();
	bool thp = access("/sys/kernel/mm/transparent_hugepage/hpage_pmd_size", F_OK) == 0;

	setvbuf(stdout, NULL, _IOLBF, 0);
	alarm(600 * SLOWER);
	if (argc > 1) {
		bytes = strtoul(argv[1], NULL, 10) << 20;
		CHECK(bytes >= 4 * HUGE && bytes <= (size_t)MOST_MIB << 20);
		pages = bytes / PAGE;
	}
	n_nodes = memory_nodes(nodes, 2);
	if (features < 0) {
		struct pf_user call = user_call(0, PF_USER_CHECKED, 1, NULL, 0, left);

		CHECK(pf_user_run(&call) == features);
		printf("user engine: not here, %s\n", strerror((int)-features));
		return 0;
	}
	bad_calls();
	for (uint32_t way = PF_USER_CHECKED; way <= PF_USER_PROTECT; way++) {
		for (int huge = 0; huge <= thp; huge++) {
			if (!way_works(way, huge)) {
				printf("%s: not on this kernel\n", way_name(way));
				continue;
			}
			moves(way, huge, 1, 0);
			moves(way, huge, 3, 0);
			if (!huge && way_works(way, true))
				moves(way, huge, 2, PF_USER_NO_FILL);
			if (huge) {
				splits(way);
			} else {
				absent(way);
				the_call_itself(way);
				if (way_works(way, true))
					pieces_of_one_page(way);
				borders_in_pieces(way);
			}
		}
	}
	if (way_works(PF_USER_CHECKED, false)) {
		already();
		policy_stays();
		refuses();
		refuses_itself();
		cancelled(1);
		cancelled(2);
		pool(false);
		if (thp)
			pool(true);
	}
	pf_crew_stop();
	printf("user engine: ok, %d nodes, features %" PRIx64 "\n", n_nodes, (uint64_t)features);
	return 0;
}
