// SPDX-License-Identifier: Apache-2.0
/* Copying pages: one thread or the crew, by the method that fits. */
#include <errno.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <string.h>

#include "copy.h"
#include "crew.h"
#include "pageferry.h"

enum {
	/* A thread's pieces: what all wait for at the end is one of them. */
	PIECE_MOST = 2 << 20,
	PIECE_LEAST = 64 << 10,
	PIECES_PER_THREAD = 8,
};

typedef uint64_t __attribute__((may_alias)) word;

/*
 * Bytes up to the first word of dst, words, and the bytes that remain. Where
 * src is a word too, each goes by one load and one store; a compiler may split
 * or repeat other accesses.
 */
PF_RACY static void copy_words(unsigned char *dst, const unsigned char *src, uint64_t bytes)
{
	bool whole = !(((uintptr_t)dst ^ (uintptr_t)src) & 7);

	for (; bytes && (uintptr_t)dst & 7; bytes--)
		*dst++ = *src++;
	for (; whole && bytes >= 32; bytes -= 32) {
		uint64_t a = __atomic_load_n((const word *)src, __ATOMIC_RELAXED);
		uint64_t b = __atomic_load_n((const word *)src + 1, __ATOMIC_RELAXED);
		uint64_t c = __atomic_load_n((const word *)src + 2, __ATOMIC_RELAXED);
		uint64_t d = __atomic_load_n((const word *)src + 3, __ATOMIC_RELAXED);

		__atomic_store_n((word *)dst, a, __ATOMIC_RELAXED);
		__atomic_store_n((word *)dst + 1, b, __ATOMIC_RELAXED);
		__atomic_store_n((word *)dst + 2, c, __ATOMIC_RELAXED);
		__atomic_store_n((word *)dst + 3, d, __ATOMIC_RELAXED);
		dst += 32;
		src += 32;
	}
	for (; bytes >= 8; bytes -= 8) {
		uint64_t one;

		if (whole)
			one = __atomic_load_n((const word *)src, __ATOMIC_RELAXED);
		else
			memcpy(&one, src, sizeof(one));
		__atomic_store_n((word *)dst, one, __ATOMIC_RELAXED);
		dst += 8;
		src += 8;
	}
	while (bytes--)
		*dst++ = *src++;
}

PF_RACY static void copy_memcpy(unsigned char *dst, const unsigned char *src, uint64_t bytes)
{
	memcpy(dst, src, bytes);
}

#if !defined(__x86_64__) && !defined(__aarch64__) && !defined(__powerpc64__)
pf_copy_lines *pf_copy_arch(uint32_t method)
{
	(void)method;
	return NULL;
}

void pf_copy_fence(void)
{
}

bool pf_copy_evict(const unsigned char *lines, uint64_t bytes)
{
	(void)lines;
	(void)bytes;
	return false;
}
#endif

/*
 * What AUTO goes by: until somebody has measured, what was good on several
 * machines. large_method AUTO is the widest vector there is.
 */
static struct {
	_Atomic uint32_t large_method;
	_Atomic uint64_t large_bytes;
	_Atomic uint64_t thread_bytes;
} tuning = { PF_COPY_AUTO, 1 << 20, 2 << 20 };

static pf_copy_lines *function_of(uint32_t method)
{
	switch (method) {
	case PF_COPY_MEMCPY:
		return copy_memcpy;
	case PF_COPY_WORDS:
		return copy_words;
	default:
		return pf_copy_arch(method);
	}
}

const char *pf_copy_name(uint32_t method)
{
	static const char *const names[PF_COPY_METHODS] = {
		[PF_COPY_AUTO] = "auto",
		[PF_COPY_MEMCPY] = "memcpy",
		[PF_COPY_WORDS] = "words",
		[PF_COPY_REP_MOVSB] = "rep_movsb",
		[PF_COPY_SSE2] = "sse2",
		[PF_COPY_AVX2] = "avx2",
		[PF_COPY_AVX512] = "avx512",
		[PF_COPY_NEON] = "neon",
		[PF_COPY_VSX] = "vsx",
	};

	return method < PF_COPY_METHODS ? names[method] : NULL;
}

uint32_t pf_copy_methods(void)
{
	uint32_t mask = 0;

	for (uint32_t method = 1; method < PF_COPY_METHODS; method++)
		if (function_of(method))
			mask |= 1u << method;
	return mask;
}

static uint32_t large_method(void)
{
	static const uint32_t best_first[] = {
		PF_COPY_AVX512, PF_COPY_AVX2, PF_COPY_SSE2, PF_COPY_NEON, PF_COPY_VSX,
	};
	uint32_t method = atomic_load(&tuning.large_method);

	for (size_t i = 0; !method && i < sizeof(best_first) / sizeof(*best_first); i++)
		if (function_of(best_first[i]))
			method = best_first[i];
	return method ? method : PF_COPY_MEMCPY;
}

void pf_copy_tuned(struct pf_copy_tuning *now)
{
	memset(now, 0, sizeof(*now));
	now->large_method = large_method();
	now->large_bytes = atomic_load(&tuning.large_bytes);
	now->thread_bytes = atomic_load(&tuning.thread_bytes);
}

int pf_copy_tune(const struct pf_copy_tuning *wanted)
{
	if (!wanted->large_method || wanted->large_method >= PF_COPY_METHODS ||
	    !wanted->thread_bytes)
		return -EINVAL;
	if (!function_of(wanted->large_method))
		return -ENOTSUP;
	atomic_store(&tuning.large_method, wanted->large_method);
	atomic_store(&tuning.large_bytes, wanted->large_bytes);
	atomic_store(&tuning.thread_bytes, wanted->thread_bytes);
	return 0;
}

int pf_copy_choose(uint64_t bytes, uint32_t method)
{
	if (method >= PF_COPY_METHODS)
		return -EINVAL;
	if (method != PF_COPY_AUTO)
		return function_of(method) ? (int)method : -ENOTSUP;
	if (bytes < atomic_load(&tuning.large_bytes))
		return PF_COPY_MEMCPY;
	return (int)large_method();
}

/* Words up to the first line of dst, lines, and what remains. */
static void copy_range(unsigned char *dst, const unsigned char *src, uint64_t bytes,
		       pf_copy_lines *lines)
{
	uint64_t head = -(uintptr_t)dst & (PF_LINE - 1);
	uint64_t middle;

	if (head > bytes)
		head = bytes;
	middle = (bytes - head) & ~(uint64_t)(PF_LINE - 1);
	if (head)
		copy_words(dst, src, head);
	if (middle)
		lines(dst + head, src + head, middle);
	if (bytes - head - middle)
		copy_words(dst + head + middle, src + head + middle, bytes - head - middle);
}

/* Once after many ranges: it waits until all stores under way have arrived. */
static void fence_after(uint32_t method)
{
	if (method >= PF_COPY_SSE2)
		pf_copy_fence();
}

/* Overlapping, or past the end of the address space. */
static bool entangled(const void *dst, const void *src, uint64_t bytes)
{
	uintptr_t to = (uintptr_t)dst, from = (uintptr_t)src;

	return to + bytes < to || from + bytes < from || (to < from + bytes && from < to + bytes);
}

int pf_copy_pages(void *dst, const void *src, uint64_t bytes, uint32_t method)
{
	int chosen = pf_copy_choose(bytes, method);

	if (chosen < 0)
		return chosen;
	if (!bytes)
		return 0;
	if (entangled(dst, src, bytes))
		return -EINVAL;
	copy_range(dst, src, bytes, function_of((uint32_t)chosen));
	fence_after((uint32_t)chosen);
	return 0;
}

/*
 * A copy that is dealt out. Its pages, one after the other, are taken as one
 * range of bytes, and pieces of that range are claimed at the cursor. A range
 * in one piece of memory is one page.
 */
struct deal {
	void *const *dst;
	const void *const *src;
	uint64_t page_size;
	uint64_t total;
	uint64_t piece;		/* divides page_size up, or is a multiple of it */
	uint32_t method;
	pf_copy_lines *lines;
	_Atomic uint64_t cursor;
};

/* A cut inside a page goes to the next line of dst: it must not part a word. */
static uint64_t at_line(const struct deal *deal, uint64_t at)
{
	uint64_t offset = at % deal->page_size;
	uint64_t more;

	if (!offset)
		return at;
	more = -((uintptr_t)deal->dst[at / deal->page_size] + offset) & (PF_LINE - 1);
	return at + (more < deal->page_size - offset ? more : deal->page_size - offset);
}

/* Copy from `at` to `end` of the range; pages that adjoin on both sides as one. */
static void copy_piece(const struct deal *deal, uint64_t at, uint64_t end)
{
	at = at_line(deal, at);
	end = at_line(deal, end);
	while (at < end) {
		uint64_t page = at / deal->page_size;
		uint64_t offset = at % deal->page_size;
		unsigned char *dst = (unsigned char *)deal->dst[page] + offset;
		const unsigned char *src = (const unsigned char *)deal->src[page] + offset;
		uint64_t length = deal->page_size - offset;

		while (at + length < end && deal->dst[++page] == dst + length &&
		       deal->src[page] == src + length)
			length += deal->page_size;
		if (length > end - at)
			length = end - at;
		copy_range(dst, src, length, deal->lines);
		at += length;
	}
}

static uint64_t copy_left(struct deal *deal)
{
	uint64_t at = atomic_load(&deal->cursor);

	return at < deal->total ? deal->total - at : 0;
}

static void claim_pieces(void *arg, uint32_t worker)
{
	struct deal *deal = arg;

	while (crew_go_on()) {
		uint64_t at = atomic_fetch_add(&deal->cursor, deal->piece);

		if (at >= deal->total)
			break;
		copy_piece(deal, at, deal->total - at < deal->piece ? deal->total
								    : at + deal->piece);
		if (!worker && crew_call_again(copy_left(deal)))
			break;
	}
	fence_after(deal->method);
}

/*
 * Whole pages are dealt out, several to a piece where they are small: a page
 * stays with one thread, which walks it in order, as prefetchers and TLB like
 * it, and pieces are claimed seldom. With fewer pages than threads some would
 * get none, so every page is cut into slices then.
 */
static uint64_t piece_of(uint64_t total, uint64_t pages, uint64_t page_size, uint32_t threads)
{
	uint64_t piece = total / threads / PIECES_PER_THREAD;

	if (piece > PIECE_MOST)
		piece = PIECE_MOST;
	if (piece < PIECE_LEAST)
		piece = total / threads < PIECE_LEAST ? total / threads : PIECE_LEAST;
	if (pages < threads)
		/* From 4 KiB on a slice is whole base pages, below it is whole lines. */
		return piece >= 4096 ? piece & ~4095ull : (piece + PF_LINE) & ~(PF_LINE - 1ull);
	return piece < page_size ? page_size : piece / page_size * page_size;
}

static uint32_t worthwhile(uint64_t total, uint32_t threads)
{
	uint64_t work = total / atomic_load(&tuning.thread_bytes);

	return work >= threads ? threads : work ? (uint32_t)work : 1;
}

static int deal_out(struct deal *deal, uint64_t pages, uint32_t threads, const int32_t *cpus,
		    uint32_t method)
{
	int chosen, most = 0;

	if (!threads || threads > PF_MAX_THREADS)
		return -EINVAL;
	chosen = pf_copy_choose(deal->total, method);
	if (chosen < 0)
		return chosen;
	if (!deal->total)
		return 1;
	if (method == PF_COPY_AUTO)
		threads = worthwhile(deal->total, threads);
	for (uint64_t i = 0; i < pages; i++)
		if (entangled(deal->dst[i], deal->src[i], deal->page_size))
			return -EINVAL;
	deal->method = (uint32_t)chosen;
	deal->lines = function_of(deal->method);
	if (threads == 1) {
		copy_piece(deal, 0, deal->total);
		fence_after(deal->method);
		return 1;
	}
	deal->piece = piece_of(deal->total, pages, deal->page_size, threads);
	do {
		int workers = pf_crew_run(threads, cpus, claim_pieces, deal, NULL, NULL, 0);

		if (workers > most)
			most = workers;
	} while (copy_left(deal));
	return most;
}

__attribute__((noinline)) static int deal_one(void *dst, const void *src, uint64_t bytes,
					       uint32_t threads, const int32_t *cpus,
					       uint32_t method)
{
	struct deal deal = { .dst = &dst, .src = &src, .page_size = bytes, .total = bytes };

	return deal_out(&deal, 1, threads, cpus, method);
}

int pf_copy_pages_mthread(void *dst, const void *src, uint64_t bytes, uint32_t threads,
			  const int32_t *cpus, uint32_t method)
{
	/* Small copies are many, and what a deal costs is some percent of one. */
	if (threads == 1 || (method == PF_COPY_AUTO && threads && threads <= PF_MAX_THREADS &&
			     bytes < 2 * atomic_load(&tuning.thread_bytes))) {
		int done = pf_copy_pages(dst, src, bytes, method);

		return done ? done : 1;
	}
	return deal_one(dst, src, bytes, threads, cpus, method);
}

int pf_copy_page_lists(void *const *dst, const void *const *src, uint64_t pages,
		       uint64_t page_size, uint32_t threads, const int32_t *cpus, uint32_t method)
{
	struct deal deal = { .dst = dst, .src = src, .page_size = page_size };

	if (__builtin_mul_overflow(pages, page_size, &deal.total))
		return -EINVAL;
	return deal_out(&deal, pages, threads, cpus, method);
}
