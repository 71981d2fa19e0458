// SPDX-License-Identifier: Apache-2.0
/*
 * Every byte of a call of the user engine is counted once, whatever became of
 * it: pages of which some are shared, absent, or on a node without room, more
 * pieces left than the caller has room for, calls that fail at once.
 */
#include <errno.h>
#include <sys/wait.h>

#include "user_memory.h"

enum { BYTES = 4 << 20, PAGES = BYTES >> 12, NOWHERE = PF_MAX_NODES - 1 };

static int node;
static struct pf_extent left[MAX_LEFT];

static uint64_t listed(const struct pf_user *call)
{
	uint64_t bytes = 0;

	for (uint64_t i = 0; i < call->n_left; i++)
		bytes += call->left[i].pages << call->left[i].shift;
	return bytes;
}

static void check_sum(const struct pf_user *call)
{
	const struct pf_user_progress *p = &call->progress;
	uint64_t sum = p->bytes_moved + p->bytes_already + p->bytes_gone + p->bytes_left +
		       p->bytes_skipped;

	if (sum != BYTES)
		fprintf(stderr, "moved %" PRIu64 ", gone %" PRIu64 ", left %" PRIu64
			", skipped %" PRIu64 "\n", p->bytes_moved, p->bytes_gone, p->bytes_left,
			p->bytes_skipped);
	CHECK(sum == BYTES);
	CHECK(p->bytes_left == listed(call));
}

/* Memory that a child shares until the end of the pipe. */
static pid_t share(int *pipes)
{
	pid_t child;
	char byte;

	CHECK(!pipe(pipes));
	child = fork();
	CHECK(child >= 0);
	if (!child) {
		close(pipes[1]);
		_exit(read(pipes[0], &byte, 1) != 0);
	}
	close(pipes[0]);
	return child;
}

static void end_of_sharing(pid_t child, const int *pipes)
{
	int status;

	close(pipes[1]);
	CHECK(waitpid(child, &status, 0) == child && !status);
}

/* Shared pages are where they were: that is no want of room on the target. */
static void shared_and_no_room(void)
{
	unsigned char *memory = memory_new(BYTES, false);
	struct pf_extent extent = extent_of(memory, BYTES, false);
	struct pf_user call;
	int pipes[2];
	pid_t child;

	fill(memory, BYTES, 1);
	child = share(pipes);
	for (size_t i = BYTES / 2; i < BYTES; i++)	/* this half is ours alone again */
		memory[i] = byte_at(i, 1);
	call = user_call(NOWHERE, PF_USER_CHECKED, 1, &extent, 1, left);
	CHECK(pf_user_run(&call) == 0);
	check_sum(&call);
	CHECK(!call.progress.bytes_moved && !call.progress.bytes_gone);
	CHECK(call.progress.left[EBUSY] > 0);
	check_fill(memory, BYTES, 1);
	end_of_sharing(child, pipes);
	CHECK(!munmap(memory, BYTES));
}

/* More holes than a piece keeps a list of: what is behind them is there all the same. */
static void many_holes(void)
{
	unsigned char *memory = memory_new(BYTES, false);
	struct pf_extent extent = extent_of(memory, BYTES, false);
	struct pf_user call;

	fill(memory, BYTES, 2);
	for (size_t i = 0; i < PAGES; i += 2)
		CHECK(!madvise(memory + i * PAGE, PAGE, MADV_DONTNEED));
	call = user_call(node, PF_USER_CHECKED, 2, &extent, 1, left);
	CHECK(pf_user_run(&call) == 0);
	check_sum(&call);
	CHECK(call.progress.bytes_gone <= BYTES / 2);
	CHECK(call.progress.bytes_moved > 0);
	CHECK(call.progress.bytes_moved + call.progress.bytes_left >= BYTES / 2);
	CHECK(!munmap(memory, BYTES));
}

static void no_room_in_left(void)
{
	unsigned char *memory = memory_new(BYTES, false);
	struct pf_extent extent = extent_of(memory, BYTES, false);
	struct pf_user call;
	int pipes[2];
	pid_t child;

	fill(memory, BYTES, 3);
	child = share(pipes);
	for (size_t i = 0; i < PAGES; i += 32)
		memory[i * PAGE] = byte_at(i * PAGE, 3);
	call = user_call(node, PF_USER_CHECKED, 2, &extent, 1, left);
	call.max_left = 3;
	CHECK(pf_user_run(&call) == 0);
	CHECK(call.n_left == 3);
	CHECK(call.progress.bytes_skipped > 0);
	check_sum(&call);
	check_fill(memory, BYTES, 3);
	end_of_sharing(child, pipes);
	CHECK(!munmap(memory, BYTES));
}

/* The struct of the call is in a piece itself, and that piece is copied while it is away. */
static void own_struct(void)
{
	unsigned char *memory = memory_new(BYTES, false);
	struct pf_extent extent = extent_of(memory, BYTES, false);
	struct pf_user *call = (struct pf_user *)memory;

	fill(memory, BYTES, 4);
	*call = user_call(node, PF_USER_CHECKED, 2, &extent, 1, left);
	call->flags |= PF_USER_NO_FILL;
	CHECK(pf_user_run(call) == 0);
	check_sum(call);
	CHECK(call->progress.bytes_moved == BYTES);
	for (size_t i = sizeof(*call); i < BYTES; i++)
		CHECK(memory[i] == byte_at(i, 4));
	CHECK(!munmap(memory, BYTES));
}

/* After a cancel the next call tries nothing, and says so. */
static void nothing_tried(void)
{
	unsigned char *memory = memory_new(BYTES, false);
	struct pf_extent extent = extent_of(memory, BYTES, false);
	struct pf_user call = user_call(node, PF_USER_CHECKED, 2, &extent, 1, left);

	call.cancel = 1;
	CHECK(pf_user_run(&call) == -ECANCELED);
	check_sum(&call);
	CHECK(call.progress.bytes_skipped == BYTES);
	CHECK(!munmap(memory, BYTES));
}

int main(void)
{
	int nodes[1];

	alarm(600 * SLOWER);
	if (!way_works(PF_USER_CHECKED, false)) {
		printf("user accounts: not on this kernel\n");
		return 0;
	}
	CHECK(memory_nodes(nodes, 1) >= 1);
	node = nodes[0];
	shared_and_no_room();
	many_holes();
	no_room_in_left();
	own_struct();
	nothing_tried();
	pf_crew_stop();
	printf("user accounts: ok\n");
	return 0;
}
