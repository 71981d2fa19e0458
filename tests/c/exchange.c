// SPDX-License-Identifier: Apache-2.0
/*
 * Exchange: pages swap places, bytes do not. With one node the exchange is asked
 * for all the same, and seen by the frames of the pages.
 */
#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <sys/wait.h>
#include <time.h>

#include "user_memory.h"

enum { BYTES = 16 << 20, PAGES = BYTES >> 12 };

static uint64_t frames[2][2][PAGES];	/* before and after, by side */
static unsigned char *sides[2];

static struct pf_exchange exchange_call(const struct pf_exchange_pair *pairs, uint64_t n,
					uint32_t threads)
{
	return (struct pf_exchange){
		.pairs = pairs,
		.n_pairs = n,
		.threads = threads,
		.flags = PF_EXCHANGE_SAME,
	};
}

static struct pf_exchange_pair pair_of(const void *a, const void *b, uint64_t bytes)
{
	return (struct pf_exchange_pair){
		.a = (uintptr_t)a, .b = (uintptr_t)b, .bytes = bytes,
	};
}

static void two_sides(bool huge)
{
	for (unsigned int i = 0; i < 2; i++) {
		sides[i] = memory_new(BYTES, huge);
		fill(sides[i], BYTES, 10 + i);
	}
}

static void two_sides_end(void)
{
	for (int i = 0; i < 2; i++) {
		check_fill(sides[i], BYTES, 10 + (unsigned int)i);
		CHECK(!munmap(sides[i], BYTES));
	}
}

static void note_frames(int when)
{
	for (int i = 0; i < 2; i++)
		pagemap(sides[i], PAGES, frames[when][i]);
}

/* Pages whose frame is the one that the other side had. Frames are for root only. */
static size_t swapped(size_t shift)
{
	size_t count = 0;

	for (size_t i = 0; i + shift < PAGES; i++) {
		uint64_t before = frames[0][1][i + shift] & PAGEMAP_FRAME;
		uint64_t after = frames[1][0][i] & PAGEMAP_FRAME;

		count += before == after;
	}
	return count;
}

static void pages_swap_places(bool huge, uint32_t threads)
{
	char before[2][512], after[512];
	struct pf_exchange_pair pair;
	struct pf_exchange call;

	two_sides(huge);
	pair = pair_of(sides[0], sides[1], BYTES);
	for (int i = 0; i < 2; i++)
		CHECK(mappings_in(sides[i], BYTES, before[i], sizeof(before[i])) == 1);
	note_frames(0);
	call = exchange_call(&pair, 1, threads);
	CHECK(pf_exchange_run(&call) == 0);
	note_frames(1);
	CHECK(call.bytes_exchanged == BYTES);
	CHECK(!call.bytes_gone && !call.bytes_same && !call.bytes_skipped);
	CHECK(call.pieces >= BYTES / HUGE && call.stall_us_max > 0);
	CHECK(swapped(0) == PAGES);
	for (int i = 0; i < 2; i++) {
		CHECK(mappings_in(sides[i], BYTES, after, sizeof(after)) == 1);
		CHECK(!strcmp(before[i], after));
	}
	two_sides_end();
}

/* Without the flag, pages on one node stay. */
static void the_same_node_stays(void)
{
	struct pf_exchange_pair pair;
	struct pf_exchange call;

	two_sides(false);
	pair = pair_of(sides[0], sides[1], BYTES);
	call = exchange_call(&pair, 1, 2);
	call.flags = 0;
	CHECK(pf_exchange_run(&call) == 0);
	CHECK(call.bytes_same + call.bytes_exchanged == BYTES);
	two_sides_end();
}

/* Ranges that lie differently to the borders of huge pages, and base against huge. */
static void of_different_kinds(void)
{
	struct pf_exchange_pair pair;
	struct pf_exchange call;

	two_sides(true);
	pair = pair_of(sides[0], sides[1] + 5 * PAGE, BYTES - 5 * PAGE);
	note_frames(0);
	/* One thread: two would find each other's halves of a huge page busy, once in a while. */
	call = exchange_call(&pair, 1, 1);
	CHECK(pf_exchange_run(&call) == 0);
	note_frames(1);
	CHECK(call.bytes_exchanged == BYTES - 5 * PAGE);
	CHECK(swapped(5) == PAGES - 5);
	two_sides_end();

	sides[0] = memory_new(BYTES, false);
	sides[1] = memory_new(BYTES, true);
	fill(sides[0], BYTES, 10);
	fill(sides[1], BYTES, 11);
	pair = pair_of(sides[0], sides[1], BYTES);
	call = exchange_call(&pair, 1, 2);
	CHECK(pf_exchange_run(&call) == 0);
	CHECK(call.bytes_exchanged == BYTES);
	two_sides_end();
}

/* Holes, on either side, and many of them: what both have is exchanged, the rest stays. */
static void holes_are_left_alone(void)
{
	struct pf_exchange_pair pair;
	struct pf_exchange call;
	size_t both = 0;

	two_sides(false);
	for (size_t i = 0; i < PAGES; i++) {
		bool a = i % 64 == 3 || (i >= 1024 && i < 1536), b = i % 128 == 9;

		if (a)
			CHECK(!madvise(sides[0] + i * PAGE, PAGE, MADV_DONTNEED));
		if (b)
			CHECK(!madvise(sides[1] + i * PAGE, PAGE, MADV_DONTNEED));
		both += !a && !b;
	}
	pair = pair_of(sides[0], sides[1], BYTES);
	call = exchange_call(&pair, 1, 2);
	CHECK(pf_exchange_run(&call) == 0);
	CHECK(call.bytes_exchanged == both * PAGE);
	CHECK(call.bytes_gone == BYTES - both * PAGE);
	for (size_t i = 0; i < PAGES; i++) {
		bool a = i % 64 == 3 || (i >= 1024 && i < 1536), b = i % 128 == 9;

		for (size_t j = 0; j < PAGE; j += 8) {
			size_t at = i * PAGE + j;

			CHECK(sides[0][at] == (a ? 0 : byte_at(at, 10)));
			CHECK(sides[1][at] == (b ? 0 : byte_at(at, 11)));
		}
	}
	CHECK(!munmap(sides[0], BYTES) && !munmap(sides[1], BYTES));
}

/* Pages that a child shares are refused, on whichever side; all others go. */
static void shared_pages_are_refused(void)
{
	struct pf_exchange_pair pair;
	struct pf_exchange call;
	int pipes[2];
	char byte;
	pid_t child;

	two_sides(false);
	CHECK(!madvise(sides[0], BYTES, MADV_DONTFORK) && !madvise(sides[1], BYTES, MADV_DONTFORK));
	CHECK(!madvise(sides[1] + 20 * PAGE, 7 * PAGE, MADV_DOFORK));
	CHECK(!pipe(pipes));
	child = fork();
	CHECK(child >= 0);
	if (!child) {
		close(pipes[1]);
		_exit(read(pipes[0], &byte, 1) != 0);
	}
	pair = pair_of(sides[0], sides[1] + 20 * PAGE, 7 * PAGE);
	call = exchange_call(&pair, 1, 2);
	CHECK(pf_exchange_run(&call) == 0);
	CHECK(call.bytes_exchanged == 0 && call.refused[EBUSY] == 7 * PAGE);
	pair = pair_of(sides[1] + 20 * PAGE, sides[0], 7 * PAGE);
	call = exchange_call(&pair, 1, 1);
	CHECK(pf_exchange_run(&call) == 0);
	CHECK(call.bytes_exchanged == 0 && call.refused[EBUSY] == 7 * PAGE);
	close(pipes[1]);
	CHECK(waitpid(child, NULL, 0) == child);
	close(pipes[0]);
	CHECK(!madvise(sides[1] + 20 * PAGE, 7 * PAGE, MADV_DONTFORK));
	two_sides_end();
}

static uint64_t bytes_refused(const struct pf_exchange *call)
{
	uint64_t bytes = 0;

	for (int i = 0; i < PF_MAX_ERRNO; i++)
		bytes += call->refused[i];
	return bytes;
}

static void other_memory_is_refused(void)
{
	unsigned char *shared = mmap(NULL, HUGE, PROT_READ | PROT_WRITE,
				     MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	struct pf_exchange_pair pair;
	struct pf_exchange call;

	CHECK(shared != MAP_FAILED);
	two_sides(false);
	fill(shared, HUGE, 3);
	pair = pair_of(sides[0], shared, HUGE);
	call = exchange_call(&pair, 1, 1);
	CHECK(pf_exchange_run(&call) == 0);
	CHECK(call.bytes_exchanged == 0 && bytes_refused(&call) == HUGE);
	check_fill(shared, HUGE, 3);
	/* The stack that this runs on. */
	pair = pair_of(sides[0], (void *)((uintptr_t)__builtin_frame_address(0) & ~(PAGE - 1)),
		       PAGE);
	call = exchange_call(&pair, 1, 1);
	CHECK(pf_exchange_run(&call) == 0);
	/* With a sanitizer's large frames it may be beyond what the engine itself needs. */
	CHECK(call.bytes_exchanged + bytes_refused(&call) == PAGE);
	two_sides_end();
}

/* The structures of the call itself are in memory that is exchanged. */
static void the_call_itself(void)
{
	struct pf_exchange *call;
	struct pf_exchange_pair *pair;

	two_sides(false);
	call = (struct pf_exchange *)(void *)(sides[0] + 3 * PAGE);
	pair = (struct pf_exchange_pair *)(void *)(sides[1] + 3 * PAGE);
	*pair = pair_of(sides[0], sides[1], BYTES);
	*call = exchange_call(pair, 1, 3);
	CHECK(pf_exchange_run(call) == 0);
	CHECK(call->bytes_exchanged == BYTES);
	CHECK(!munmap(sides[0], BYTES) && !munmap(sides[1], BYTES));
}

static void nonsense_is_refused(void)
{
	struct pf_exchange_pair pair = pair_of((void *)HUGE, (void *)(4 * HUGE), HUGE);
	struct pf_exchange call = exchange_call(&pair, 1, 0);

	CHECK(pf_exchange_run(&call) == -EINVAL);
	call.threads = PF_MAX_THREADS + 1;
	CHECK(pf_exchange_run(&call) == -EINVAL);
	call.threads = 1;
	pair.bytes = 4 * HUGE;	/* they overlap */
	CHECK(pf_exchange_run(&call) == -EINVAL);
	pair.bytes = 0;
	CHECK(pf_exchange_run(&call) == -EINVAL);
	pair.bytes = PAGE + 1;
	CHECK(pf_exchange_run(&call) == -EINVAL);
	pair = pair_of((void *)(PAGE / 2), (void *)(4 * HUGE), HUGE);
	CHECK(pf_exchange_run(&call) == -EINVAL);
	pair = pair_of((void *)(UINT64_MAX - PAGE + 1), (void *)(4 * HUGE), HUGE);
	CHECK(pf_exchange_run(&call) == -EINVAL);
	call.n_pairs = 0;
	CHECK(pf_exchange_run(&call) == 0);
}

static int polls;

static int poll_ends(void *arg)
{
	(void)arg;
	return ++polls == 2;
}

static void cancelled(void)
{
	struct pf_exchange_pair pair;
	struct pf_exchange call;

	two_sides(false);
	pair = pair_of(sides[0], sides[1], BYTES);
	call = exchange_call(&pair, 1, 2);
	call.cancel = 1;
	CHECK(pf_exchange_run(&call) == -ECANCELED);
	CHECK(call.bytes_exchanged == 0 && call.bytes_skipped == BYTES);
	call = exchange_call(&pair, 1, 1);
	call.poll = poll_ends;
	call.poll_us = 1;
	CHECK(pf_exchange_run(&call) == -ECANCELED);
	CHECK(polls == 2 && call.bytes_exchanged == 2 * HUGE);
	CHECK(call.bytes_exchanged + call.bytes_skipped == BYTES);
	two_sides_end();
}

/* ---- While others write, read, fork and give memory up -------------------------------- */

static atomic_int end;
static atomic_uint_fast64_t written;

struct writer {
	int number;
	uint64_t counts[2];
};

/* Each has one word of every page on both sides, which only it writes. */
static void *write_on(void *arg)
{
	struct writer *writer = arg;

	do {
		for (int side = 0; side < 2; side++) {
			volatile uint64_t *words = (volatile uint64_t *)sides[side];

			for (size_t i = 0; i < PAGES; i++) {
				volatile uint64_t *word = words + i * (PAGE / 8) + writer->number;

				CHECK(*word == writer->counts[side]);
				*word = writer->counts[side] + 1;
			}
			writer->counts[side]++;
		}
		atomic_fetch_add(&written, 2 * PAGES);
	} while (!atomic_load(&end));
	return NULL;
}

static void *fork_on(void *arg)
{
	(void)arg;
	do {
		pid_t child = fork();
		int status;

		if (!child) {
			/* No page of either side is a hole: the last word of each was never 0. */
			for (size_t i = 0; i < 2 * PAGES; i++)
				if (((uint64_t *)sides[i & 1])[(i / 2 + 1) * (PAGE / 8) - 1] != 77)
					_exit(1);
			_exit(0);
		}
		CHECK(child > 0 && waitpid(child, &status, 0) == child);
		CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 0);
	} while (!atomic_load(&end));
	return NULL;
}

static void under_writers(bool huge, bool forks)
{
	struct writer writers[3] = { { .number = 0 }, { .number = 1 }, { .number = 2 } };
	struct pf_exchange_pair pair;
	uint64_t exchanged = 0;
	pthread_t threads[4];
	int n = 0;

	atomic_store(&end, 0);
	for (int i = 0; i < 2; i++) {
		sides[i] = memory_new(BYTES, huge);
		memset(sides[i], 0, BYTES);
		for (size_t k = 0; k < PAGES; k++)
			((uint64_t *)sides[i])[(k + 1) * (PAGE / 8) - 1] = 77;
	}
	pair = pair_of(sides[0], sides[1], BYTES);
	for (; n < 3; n++)
		CHECK(!pthread_create(&threads[n], NULL, write_on, &writers[n]));
	if (forks)
		CHECK(!pthread_create(&threads[n++], NULL, fork_on, NULL));
	for (int round = 0; round < (forks ? 8 : 12); round++) {
		struct pf_exchange call = exchange_call(&pair, 1, 1 + round % 3);

		CHECK(pf_exchange_run(&call) == 0);
		CHECK(!call.bytes_gone && !call.bytes_skipped);
		CHECK(call.bytes_exchanged + call.refused[EBUSY] == BYTES);
		exchanged += call.bytes_exchanged;
	}
	atomic_store(&end, 1);
	while (n)
		pthread_join(threads[--n], NULL);
	/* A page that the kernel compacts or collapses just then is busy, as one in a fork is. */
	CHECK(forks || exchanged > 11ull * BYTES);
	for (int i = 0; i < 2; i++) {
		uint64_t *words = (uint64_t *)sides[i];

		for (size_t k = 0; k < PAGES; k++, words += PAGE / 8) {
			for (int w = 0; w < 3; w++)
				CHECK(words[w] == writers[w].counts[i]);
			CHECK(words[PAGE / 8 - 1] == 77);
		}
		CHECK(!munmap(sides[i], BYTES));
	}
}

static void *give_up(void *arg)
{
	const struct timespec pause = { .tv_nsec = 100000 };
	size_t at = 0;

	(void)arg;
	do {
		CHECK(!madvise(sides[at & 1] + at % PAGES * PAGE, PAGE, MADV_DONTNEED));
		at += 13;
		/* A piece keeps book of some hundred changes: so many come in no millisecond. */
		nanosleep(&pause, NULL);
		CHECK(!mprotect(sides[0] + BYTES / 2, HUGE, PROT_READ));
		CHECK(!mprotect(sides[0] + BYTES / 2, HUGE, PROT_READ | PROT_WRITE));
	} while (!atomic_load(&end));
	return NULL;
}

/* Another thread drops pages and changes protections: a page has its bytes, or zeros. */
static void under_changes(void)
{
	struct pf_exchange_pair pair;
	pthread_t thread;

	two_sides(false);
	atomic_store(&end, 0);
	pair = pair_of(sides[0], sides[1], BYTES);
	CHECK(!pthread_create(&thread, NULL, give_up, NULL));
	for (int round = 0; round < 10; round++) {
		struct pf_exchange call = exchange_call(&pair, 1, 1 + round % 3);

		CHECK(pf_exchange_run(&call) == 0);
	}
	atomic_store(&end, 1);
	pthread_join(thread, NULL);
	for (int i = 0; i < 2; i++) {
		for (size_t k = 0; k < PAGES; k++) {
			const unsigned char *bytes = sides[i] + k * PAGE;
			bool dropped = true, kept = true;

			for (size_t j = 0; j < PAGE; j++) {
				dropped = dropped && !bytes[j];
				kept = kept && bytes[j] == byte_at(k * PAGE + j, 10 + (unsigned int)i);
			}
			CHECK(dropped || kept);
		}
		CHECK(!munmap(sides[i], BYTES));
	}
}

int main(void)
{
	int64_t features = pf_user_features();
	const int64_t needed = PF_USER_HAS_MOVE | PF_USER_HAS_EVENTS;

	alarm(600 * SLOWER);
	nonsense_is_refused();
	if (features < 0 || needed & ~features) {
		struct pf_exchange_pair pair = pair_of((void *)HUGE, (void *)(2 * HUGE), PAGE);
		struct pf_exchange call = exchange_call(&pair, 1, 1);

		CHECK(pf_exchange_run(&call) == (features < 0 ? (int)features : -EOPNOTSUPP));
		puts("exchange: ok, refused as this kernel cannot do it");
		return 0;
	}
	for (uint32_t threads = 1; threads <= 3; threads++)
		for (int huge = 0; huge < 2; huge++)
			pages_swap_places(huge, threads);
	the_same_node_stays();
	of_different_kinds();
	holes_are_left_alone();
	shared_pages_are_refused();
	other_memory_is_refused();
	the_call_itself();
	cancelled();
	under_writers(false, false);
	under_writers(true, false);
	under_writers(false, true);
	under_changes();
	pf_crew_stop();
	printf("exchange: ok, %llu writes\n", (unsigned long long)atomic_load(&written));
	return 0;
}
