// SPDX-License-Identifier: Apache-2.0
/* Every way to copy: all bytes, no byte beside them, no word torn, alone and by the crew. */
#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#include "copy.h"
#include "pageferry.h"
#include "test.h"

enum {
	GUARD = 64,
	MOST = (2 << 20) + 64,
	ROOM = MOST + 4 * GUARD,
	HUGE = 2 << 20,
};

static unsigned char *from, *to;
static uint32_t methods;

#define EACH_METHOD(m) (uint32_t m = 1; m < PF_COPY_METHODS; m++) if (methods >> m & 1)

static unsigned char byte_at(uint64_t i, unsigned int salt)
{
	return (unsigned char)((i * 131 + (i >> 8) * 7 + salt) ^ (i >> 16));
}

static void fill(unsigned char *memory, uint64_t bytes, unsigned int salt)
{
	for (uint64_t i = 0; i < bytes; i++)
		memory[i] = byte_at(i, salt);
}

/* A copy of `length` bytes between these alignments, with guards on both sides. */
static void one_range(uint32_t method, uint64_t length, unsigned int to_off,
		      unsigned int from_off, uint32_t threads)
{
	unsigned char *dst = to + GUARD + to_off;
	const unsigned char *src = from + from_off;
	int done;

	memset(dst - GUARD, 0xa5, length + 2 * GUARD);
	if (threads)
		done = pf_copy_pages_mthread(dst, src, length, threads, NULL, method);
	else
		done = pf_copy_pages(dst, src, length, method);
	CHECK(threads ? done >= 1 && done <= (int)threads : done == 0);
	CHECK(!memcmp(dst, src, length));
	for (int i = 1; i <= GUARD; i++)
		CHECK(dst[-i] == 0xa5);
	for (int i = 0; i < GUARD; i++)
		CHECK(dst[length + i] == 0xa5);
}

static void lengths_and_alignments(void)
{
	static const unsigned int offsets[] = { 0, 1, 7, 8, 15, 16, 31, 32, 33, 63 };
	static const uint64_t lengths[] = { 4095, 4096, 4097, 16383, 16384, 16385, 65535, 65536,
					    65537 };
	static const uint64_t large[] = { (256 << 10) + 4160, HUGE - 1, HUGE, HUGE + 1 };

	for EACH_METHOD(m) {
		for (uint64_t length = 0; length <= 300; length++)
			for (int i = 0; i < 10; i++)
				for (int k = 0; k < 10; k++)
					one_range(m, length, offsets[i], offsets[k], 0);
		for (int l = 0; l < 9; l++)
			for (int i = 0; i < 10; i++)
				one_range(m, lengths[l], offsets[i], offsets[(i + l) % 10], 0);
		for (int l = 0; l < 4; l++)
			for (int i = 0; i < 3; i++)
				one_range(m, large[l], offsets[3 * i], offsets[i + l], 0);
	}
	one_range(PF_COPY_AUTO, 4096, 0, 0, 0);
	one_range(PF_COPY_AUTO, MOST - 64, 3, 5, 0);
}

static void by_the_crew(void)
{
	static const uint64_t lengths[] = { 0, 1, 63, 300, 4096, 4097, 100000, HUGE - 1, HUGE };

	for EACH_METHOD(m)
		for (uint32_t threads = 1; threads <= 8; threads++)
			for (int l = 0; l < 9; l++)
				one_range(m, lengths[l], threads * 5 % 64, (unsigned int)l, threads);
	for (uint32_t threads = 1; threads <= 8; threads++)
		one_range(PF_COPY_AUTO, HUGE, 0, 0, threads);
	/* Not work for two: AUTO hands nothing over. */
	CHECK(pf_copy_pages_mthread(to, from, 4096, 8, NULL, PF_COPY_AUTO) == 1);
}

/* Scattered pages: backwards, with neighbours that could go as one, and with gaps. */
static void lists(void)
{
	enum { PAGES = 96 };
	static const uint64_t sizes[] = { 4096, 16384, 100, 7 };
	static const uint64_t counts[] = { 0, 1, 2, 3, 17, PAGES };
	const void *src[PAGES];
	void *dst[PAGES];

	for EACH_METHOD(m)
		for (int s = 0; s < 4; s++)
			for (int c = 0; c < 6; c++)
				for (uint32_t threads = 1; threads <= 8; threads += 1 + c / 3) {
					uint64_t size = sizes[s], n = counts[c];

					memset(to, 0xa5, PAGES * size + GUARD);
					for (uint64_t i = 0; i < n; i++) {
						uint64_t other = i % 8 < 4 ? i : n - 1 - i;

						dst[i] = to + i * size;
						src[i] = from + other * size;
					}
					CHECK(pf_copy_page_lists(dst, src, n, size, threads, NULL,
								 m) >= 1);
					for (uint64_t i = 0; i < n; i++)
						CHECK(!memcmp(dst[i], src[i], size));
					for (int i = 0; i < GUARD; i++)
						CHECK(to[n * size + i] == 0xa5);
				}
}

static void refusals(void)
{
	uint32_t missing = 0;
	void *dst[2] = { to, to + 4096 };
	const void *src[2] = { from, to + 4097 };

	fill(to, 8192, 9);
	for EACH_METHOD(m) {
		CHECK(pf_copy_pages(to + 1, to, 4096, m) == -EINVAL);
		CHECK(pf_copy_pages(to, to + 4095, 4096, m) == -EINVAL);
		CHECK(pf_copy_pages(to, to, 1, m) == -EINVAL);
		CHECK(pf_copy_pages(to, to + 4096, 4096, m) == 0);	/* they touch */
		fill(to, 8192, 9);
		CHECK(pf_copy_pages_mthread(to, to + 1, 4096, 2, NULL, m) == -EINVAL);
		CHECK(pf_copy_page_lists(dst, src, 2, 4096, 2, NULL, m) == -EINVAL);
		CHECK(pf_copy_pages(to, (void *)(UINTPTR_MAX - 10), 4096, m) == -EINVAL);
		CHECK(pf_copy_pages(NULL, NULL, 0, m) == 0);
		CHECK(pf_copy_name(m) && *pf_copy_name(m));
		CHECK(pf_copy_choose(1, m) == (int)m);
	}
	for (uint64_t i = 0; i < 8192; i++)	/* a refusal writes nothing */
		CHECK(to[i] == byte_at(i, 9));
	CHECK(pf_copy_page_lists(dst, src, UINT64_MAX / 2, 4096, 2, NULL, 0) == -EINVAL);
	CHECK(pf_copy_pages(to, from, 1, PF_COPY_METHODS) == -EINVAL);
	CHECK(pf_copy_pages_mthread(to, from, 1, 0, NULL, PF_COPY_AUTO) == -EINVAL);
	CHECK(pf_copy_pages_mthread(to, from, 1, PF_MAX_THREADS + 1, NULL, 0) == -EINVAL);
	CHECK(pf_copy_name(PF_COPY_METHODS) == NULL);
	for (uint32_t m = 1; m < PF_COPY_METHODS; m++)
		if (!(methods >> m & 1))
			missing = m;
	CHECK(missing && pf_copy_pages(to, from, 1, missing) == -ENOTSUP);
}

enum { WORDS = 512 };

static const uint64_t repeated = 0x0101010101010101;
static _Atomic uint64_t shared[WORDS + 2];
static atomic_bool stop;

/* Words of eight equal bytes, over and over; also under copies that the thread sanitizer sees. */
PF_RACY static void *write_words(void *arg)
{
	(void)arg;
	for (uint64_t n = 1; !atomic_load(&stop); n++)
		for (int i = 0; i < WORDS + 2; i++)
			atomic_store_explicit(&shared[i], (n & 255) * repeated,
					      memory_order_relaxed);
	return NULL;
}

/* Between all places in a line where words may begin, or be cut by the range's ends. */
static bool changed_in(uint32_t method, int round)
{
	static const uint64_t lengths[] = { 4096, 4092, 512, 300, 20 };
	unsigned int off = 4u * (unsigned int)(round % 5);
	const unsigned char *src = (const unsigned char *)shared + off;
	unsigned char *dst = to + (off + 8u * (unsigned int)(round % 8));
	uint64_t length = lengths[round % 5];
	uint64_t word, first = 0;
	bool changed = false;

	if (round % 4)
		CHECK(!pf_copy_pages(dst, src, length, method));
	else
		CHECK(pf_copy_pages_mthread(dst, src, length, 3, NULL, method) >= 1);
	for (uint64_t i = -(uintptr_t)dst & 7; i + 8 <= length; i += 8) {
		memcpy(&word, dst + i, sizeof(word));
		CHECK(word == (word & 255) * repeated);
		first = first ? first : word;
		changed |= word != first;
	}
	return changed;
}

static void no_torn_words(void)
{
	pthread_t thread;

	CHECK(!pthread_create(&thread, NULL, write_words, NULL));
	for EACH_METHOD(m) {
		time_t until = time(NULL) + 2;

		/* Until the writer was seen at work often; a lone CPU shows that seldom. */
		for (int round = 0, seen = 0; round < 4000 || seen < 1000; round++) {
			seen += changed_in(m, round);
			if (seen && time(NULL) > until)
				break;
		}
	}
	atomic_store(&stop, true);
	pthread_join(thread, NULL);
}

static void auto_goes_by_the_tuning(void)
{
	const struct pf_copy_tuning small = {
		.large_method = PF_COPY_WORDS, .large_bytes = 100, .thread_bytes = 1000,
	};
	struct pf_copy_tuning before, wrong = small, found;

	pf_copy_tuned(&before);
	CHECK(methods >> before.large_method & 1);
	CHECK(!pf_copy_tune(&small));
	CHECK(pf_copy_choose(99, PF_COPY_AUTO) == PF_COPY_MEMCPY);
	CHECK(pf_copy_choose(100, PF_COPY_AUTO) == PF_COPY_WORDS);
	CHECK(pf_copy_pages_mthread(to, from, 1999, 8, NULL, PF_COPY_AUTO) == 1);
	CHECK(pf_copy_pages_mthread(to, from, 2000, 8, NULL, PF_COPY_AUTO) <= 2);

	wrong.large_method = PF_COPY_AUTO;
	CHECK(pf_copy_tune(&wrong) == -EINVAL);
	wrong.large_method = PF_COPY_METHODS;
	CHECK(pf_copy_tune(&wrong) == -EINVAL);
	wrong = small;
	wrong.thread_bytes = 0;
	CHECK(pf_copy_tune(&wrong) == -EINVAL);
	pf_copy_tuned(&found);
	CHECK(!memcmp(&found, &small, sizeof(found)));

	CHECK(!pf_copy_measure(&found, NULL));
	CHECK(!pf_copy_tune(&found));
	CHECK(found.large_bytes >= 4096 && found.large_bytes <= 64 << 20);
	CHECK(found.thread_bytes >= 4096 && found.thread_bytes <= 64 << 20);
	CHECK(!pf_copy_tune(&before));
}

static void stream(void)
{
	double a[100] = { 0 }, b[100];

	for (int i = 0; i < 100; i++)
		b[i] = i;
	pf_stream_copy(a, b, 99);
	CHECK(!memcmp(a, b, 99 * sizeof(*a)) && a[99] == 0);
}

/* Three copies of 4 KiB in three places, the third in the first again: the room is two. */
static void timed_copies(void)
{
	struct pf_copy_timing timing = {
		.dst = to, .src = from, .room = 8192, .bytes = 4096, .stride = 4096, .count = 3,
		.method = PF_COPY_WORDS,
	};

	for (uint32_t way = 0; way < 4; way++) {
		timing.threads = way % 3;
		timing.stream = way == 3;
		timing.at = 0;
		memset(to, 0xa5, 8200);
		CHECK(!pf_copy_time(&timing));
		CHECK(timing.at == 4096 && timing.ns > 0);
		CHECK(!memcmp(to, from, 8192) && to[8192] == 0xa5);
	}
	timing.stream = 0;
	timing.method = PF_COPY_METHODS;
	CHECK(pf_copy_time(&timing) == -EINVAL);
}

static unsigned char *memory(void)
{
	unsigned char *mapped = mmap(NULL, ROOM, PROT_READ | PROT_WRITE,
				     MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	CHECK(mapped != MAP_FAILED);
	return mapped;
}

int main(void)
{
	alarm(600 * SLOWER);
	from = memory();
	to = memory();
	fill(from, ROOM, 1);
	methods = pf_copy_methods();
	CHECK(methods >> PF_COPY_MEMCPY & 1 && methods >> PF_COPY_WORDS & 1);
	lengths_and_alignments();
	by_the_crew();
	lists();
	refusals();
	no_torn_words();
	auto_goes_by_the_tuning();
	stream();
	timed_copies();
	pf_crew_stop();
	printf("copy: ok:");
	for EACH_METHOD(m)
		printf(" %s", pf_copy_name(m));
	printf("\n");
	munmap(from, ROOM);
	munmap(to, ROOM);
	return 0;
}
