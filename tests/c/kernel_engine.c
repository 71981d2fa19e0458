// SPDX-License-Identifier: Apache-2.0
/*
 * The kernel engine as a C program uses it: survey, move, locate, on whatever
 * nodes there are. With one node every page is there already; with two (the
 * lab guest) pages move and every byte is compared.
 */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdatomic.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "nodes.h"
#include "pageferry.h"
#include "test.h"

enum { PAGES = 4096, HOLE = 100, MAX_EXTENTS = 1024 };

static long page_size;
static struct pf_locate locate;

static uint64_t survey(unsigned char *memory, uint32_t method, struct pf_extent *extents,
		       struct pf_survey *out)
{
	int fd = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC);
	struct pf_survey request = {
		.start = (uintptr_t)memory,
		.end = (uintptr_t)memory + (uint64_t)(PAGES * page_size),
		.pagemap_fd = fd,
		.kpageflags_fd = -1,
		.method = method,
		.flags = PF_SURVEY_TOUCHED,
		.huge_shift = 21,
		.huge_kind = PF_PAGE_THP,
	};
	int64_t count = pf_survey_next(&request, extents, MAX_EXTENTS);

	close(fd);
	if (count == -ENOTTY)
		return 0;	/* no PAGEMAP_SCAN in this kernel */
	CHECK(count > 0);
	CHECK(request.start == request.end);
	*out = request;
	return (uint64_t)count;
}

static atomic_int stop_writing;

struct writer {
	volatile uint64_t *words;	/* the first word of each page is the writer's */
	uint64_t rounds;
};

static void *write_on(void *arg)
{
	struct writer *writer = arg;

	do {	/* once at least, however late this thread begins */
		writer->rounds++;
		for (int i = 0; i < PAGES; i++)
			if (i != HOLE)
				writer->words[i * page_size / 8] = writer->rounds;
	} while (!atomic_load(&stop_writing));
	return NULL;
}

static void move_to(int node, struct pf_extent *extents, uint64_t n, uint32_t threads,
		    uint64_t *moved, uint64_t *already)
{
	static int32_t statuses[PAGES];
	struct pf_move move = {
		.target = node,
		.flags = PF_MOVE_EXACT,
		.blocking = PF_SYNC,
		.threads = threads,
		.extents = extents,
		.n_extents = n,
		.statuses = statuses,
		.batch_bytes = 1 << 20,
		.batch_us = 20000,
	};

	memset(statuses, 0x55, sizeof(statuses));
	CHECK(pf_move_run(&move) == 0);
	for (int i = 0; i < PAGES - 1; i++)
		CHECK(statuses[i] == node);
	CHECK(move.progress.bytes_moved + move.progress.bytes_already ==
	      (uint64_t)((PAGES - 1) * page_size));
	*moved = move.progress.bytes_moved;
	*already = move.progress.bytes_already;
}

static int cancel_at_once(void *arg)
{
	(void)arg;
	return 1;
}

static void cancelled(struct pf_extent *extents, uint64_t n, int node)
{
	struct pf_move move = {
		.target = node, .blocking = PF_SYNC, .threads = 1, .extents = extents,
		.n_extents = n, .batch_bytes = 64 << 10, .poll = cancel_at_once, .poll_us = 1,
	};
	struct pf_progress *p = &move.progress;

	CHECK(pf_move_run(&move) == -ECANCELED);
	CHECK(p->pages_skipped > 0);
	CHECK(p->bytes_moved + p->bytes_already + p->bytes_skipped ==
	      (uint64_t)((PAGES - 1) * page_size));
}

static void refused(struct pf_extent *extents, uint64_t n)
{
	struct pf_move move = {
		.target = 1000, .blocking = PF_SYNC, .threads = 2, .extents = extents,
		.n_extents = n, .batch_bytes = 1 << 20,
	};

	CHECK(pf_move_run(&move) == -ENODEV);
	CHECK(move.error == ENODEV);
	CHECK(move.progress.bytes_moved == 0);
	CHECK(move.progress.bytes_skipped == (uint64_t)((PAGES - 1) * page_size));
	move.blocking = 3;
	CHECK(pf_move_run(&move) == -EINVAL);
	move.blocking = PF_SYNC;
	move.threads = 0;
	CHECK(pf_move_run(&move) == -EINVAL);
}

static int end_here_if_cancelled(void *arg)
{
	(void)arg;
	pthread_testcancel();
	return 0;
}

static void *move_with_a_cancellation_pending(void *arg)
{
	struct pf_move *move = arg;
	int state;

	CHECK(!pthread_cancel(pthread_self()));
	CHECK(pf_move_run(move) == 0);
	/* What was allowed before is so again, and has not been forgotten. */
	CHECK(!pthread_setcancelstate(PTHREAD_CANCEL_DISABLE, &state));
	CHECK(state == PTHREAD_CANCEL_ENABLE);
	move->poll = NULL;
	CHECK(!pthread_setcancelstate(PTHREAD_CANCEL_ENABLE, NULL));
	pthread_testcancel();
	return NULL;
}

/* A thread that is to end does so after the move, not in the middle of it. */
static void ends_after_the_move(struct pf_extent *extents, uint64_t n, int node)
{
	struct pf_move move = {
		.target = node,
		.blocking = PF_SYNC,
		.threads = 2,
		.extents = extents,
		.n_extents = n,
		.poll = end_here_if_cancelled,
		.poll_us = 1,
	};
	pthread_t thread;
	void *result;

	CHECK(!pthread_create(&thread, NULL, move_with_a_cancellation_pending, &move));
	CHECK(!pthread_join(thread, &result));
	CHECK(result == PTHREAD_CANCELED && !move.poll);
}

int main(void)
{
	struct pf_extent extents[MAX_EXTENTS], other[MAX_EXTENTS];
	struct pf_survey scan, pagemap, query;
	uint64_t n, m, moved, already;
	struct writer writer;
	unsigned char *memory;
	pthread_t thread;
	int nodes[2];
	int count;

	alarm(600 * SLOWER);
	page_size = sysconf(_SC_PAGESIZE);
	count = memory_nodes(nodes, 2);
	memory = mmap(NULL, PAGES * page_size, PROT_READ | PROT_WRITE,
		      MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	CHECK(memory != MAP_FAILED);
	CHECK(!madvise(memory, PAGES * page_size, MADV_NOHUGEPAGE));
	for (int i = 0; i < PAGES; i++)
		if (i != HOLE)
			memset(memory + i * page_size, 1 + i % 251, page_size);

	/* The ways to survey agree about the hole. */
	n = survey(memory, PF_SURVEY_PAGEMAP, extents, &pagemap);
	CHECK(n == 2 && extents[0].pages == HOLE && extents[1].pages == PAGES - HOLE - 1);
	m = survey(memory, PF_SURVEY_QUERY, other, &query);
	CHECK(m == n && !memcmp(extents, other, n * sizeof(*extents)));
	m = survey(memory, PF_SURVEY_SCAN, other, &scan);
	CHECK(!m || (m == n && !memcmp(extents, other, n * sizeof(*extents))));
	CHECK(pagemap.bytes_present == (uint64_t)((PAGES - 1) * page_size));

	writer.words = (volatile uint64_t *)memory;
	writer.rounds = 0;
	CHECK(!pthread_create(&thread, NULL, write_on, &writer));
	for (int round = 0; round < 4; round++)
		for (uint32_t threads = 1; threads <= 4; threads++)
			move_to(nodes[round % count], extents, n, threads, &moved, &already);
	atomic_store(&stop_writing, 1);
	pthread_join(thread, NULL);
	CHECK(already == (uint64_t)((PAGES - 1) * page_size));	/* the last time, again */
	for (int i = 0; i < PAGES; i++) {
		if (i == HOLE)
			continue;
		CHECK(writer.words[i * page_size / 8] == writer.rounds);
		for (int k = 8; k < page_size; k++)
			CHECK(memory[i * page_size + k] == 1 + i % 251);
	}

	locate.threads = 2;
	locate.extents = extents;
	locate.n_extents = n;
	CHECK(pf_locate_run(&locate) == 0);
	CHECK(locate.pages[nodes[3 % count]][PF_PAGE_BASE] == PAGES - 1);

	cancelled(extents, n, nodes[0]);
	refused(extents, n);
	ends_after_the_move(extents, n, nodes[0]);
	printf("kernel engine: ok, %d nodes\n", count);
	return 0;
}
