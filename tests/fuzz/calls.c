// SPDX-License-Identifier: Apache-2.0
/*
 * The header's functions with any arguments, on memory of this program's own:
 * refused or done, its bytes are what they were afterwards. Pointers that the
 * header lets be bad are so. Process ids are this process's own.
 */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "pageferry.h"

enum { BYTES = 2 << 20, PAGE_SHIFT = 12, PAGES = BYTES >> PAGE_SHIFT, EXTENTS = 4, MOVE = 2 };

static unsigned char before[BYTES];
static unsigned char *memory;	/* with BYTES that nobody may touch on either side */

struct input {
	const uint8_t *data;
	size_t left;
};

static uint64_t take(struct input *input, size_t bytes)
{
	uint64_t value = 0;

	for (; bytes && input->left; bytes--, input->left--)
		value = value << 8 | *input->data++;
	return value;
}

static uint64_t byte(struct input *input)
{
	return take(input, 1);
}

/* Mostly sensible: a byte chooses small, and else all bits are free. */
static uint64_t any(struct input *input, uint64_t sensible)
{
	return byte(input) & 0xc0 ? byte(input) % sensible : take(input, 8);
}

static void memory_begin(void)
{
	unsigned char *map = mmap(NULL, 4ul * BYTES, PROT_NONE,
				  MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

	if (map == MAP_FAILED)
		abort();
	memory = map + BYTES + (BYTES - (uintptr_t)map % BYTES);
	if (mprotect(memory, BYTES, PROT_READ | PROT_WRITE) ||
	    madvise(memory, BYTES, MADV_NOHUGEPAGE))
		abort();
	for (size_t i = 0; i < BYTES; i++)
		before[i] = memory[i] = (unsigned char)(i * 2654435761u >> 13);
}

static void check(void)
{
	if (memcmp(memory, before, BYTES))
		abort();
}

static uint64_t address(struct input *input)
{
	return (uintptr_t)memory + (any(input, PAGES + 2) << PAGE_SHIFT);
}

/* Extents of this memory or of none: an engine may move nothing else of this program. */
static uint64_t extents(struct input *input, struct pf_extent *list)
{
	uint64_t count = byte(input) % (EXTENTS + 1);
	uint64_t i, at = 0;

	for (i = 0; i < count; i++) {
		uint64_t pages = byte(input) % 128 + 1;

		at += byte(input) % 64;
		if (at + pages > PAGES)	/* each in one mapping, as the header has it */
			return i;
		list[i] = (struct pf_extent){
			.start = (uintptr_t)memory + (at << PAGE_SHIFT),
			.pages = pages,
			.shift = PAGE_SHIFT,
			.kind = (uint32_t)byte(input) % PF_PAGE_KINDS,
		};
		at += pages;
	}
	return count;
}

static void call_move(struct input *input)
{
	struct pf_extent list[EXTENTS];
	static int32_t statuses[EXTENTS * 128];
	struct pf_move move = {
		.extents = list, .n_extents = extents(input, list),
		.target = (int32_t)any(input, 2), .flags = (uint32_t)any(input, 4) & 3,
		.blocking = (uint32_t)any(input, 5), .threads = (uint32_t)any(input, 4),
		.batch_bytes = any(input, 1 << 20), .batch_us = (uint32_t)any(input, 1000),
		.smallest_bytes = any(input, 4 << 20),
	};

	move.statuses = byte(input) & 1 ? statuses : NULL;
	move.cancel = byte(input) == 7;
	if (move.threads > 4 && move.threads <= PF_MAX_THREADS)
		move.threads = 4;
	pf_move_run(&move);
}

static void call_locate(struct input *input)
{
	static struct pf_locate locate;
	struct pf_extent list[EXTENTS];

	memset(&locate, 0, sizeof(locate));
	locate.extents = list;
	locate.n_extents = extents(input, list);
	locate.threads = (uint32_t)any(input, 4);
	locate.stride = any(input, 9);
	if (locate.threads > 4 && locate.threads <= PF_MAX_THREADS)
		locate.threads = 4;
	pf_locate_run(&locate);
}

static void call_user(struct input *input)
{
	struct pf_extent list[EXTENTS], left[8];
	struct pf_user user = {
		.extents = list, .n_extents = extents(input, list), .left = left,
		.max_left = byte(input) % 9, .target = (int32_t)any(input, 2),
		.way = (uint32_t)any(input, 5), .flags = (uint32_t)any(input, 16) & 15,
		.page_shift = (uint32_t)any(input, 24), .threads = (uint32_t)any(input, 3),
		.piece_bytes = any(input, 1 << 20), .stall_us = (uint32_t)any(input, 1000),
		.copy_method = (uint32_t)any(input, PF_COPY_METHODS),
	};

	if (user.threads > 2 && user.threads <= PF_MAX_THREADS)
		user.threads = 2;
	pf_user_run(&user);
}

static void call_exchange(struct input *input)
{
	uint64_t bytes = (byte(input) % 128 + 1) << PAGE_SHIFT;
	struct pf_exchange_pair pair = {
		.a = (uintptr_t)memory + (byte(input) % 128 << PAGE_SHIFT),
		.b = (uintptr_t)memory + BYTES / 2 + (byte(input) % 128 << PAGE_SHIFT),
		.bytes = bytes,
	};
	struct pf_exchange exchange = {
		.pairs = &pair, .n_pairs = byte(input) % 2, .threads = (uint32_t)any(input, 3),
		.flags = (uint32_t)any(input, 2) & PF_EXCHANGE_SAME,
	};

	if (byte(input) == 9)
		pair.a = take(input, 8) | 1;	/* no page: refused */
	if (exchange.threads > 2 && exchange.threads <= PF_MAX_THREADS)
		exchange.threads = 2;
	pf_exchange_run(&exchange);
}

static void call_mt(struct input *input)
{
	static uint64_t pages[PAGES];
	static int32_t nodes[PAGES], status[PAGES];
	struct pf_mt mt = { .threads = (uint32_t)byte(input) % 4, .measure = byte(input) & 1 };
	uint64_t mask[PF_NODE_WORDS] = { 1 };
	uint64_t count = any(input, PAGES + 1);
	uint64_t way = byte(input);
	uint64_t i;

	/* A longer list would run on into what lies behind the arrays; a bad one may be any long. */
	if (count > PAGES && way & 2)
		count = PAGES;
	for (i = 0; i < PAGES; i++) {
		pages[i] = (uintptr_t)memory + (i << PAGE_SHIFT);
		nodes[i] = 0;
	}
	for (i = byte(input) % 8; i; i--) {
		pages[take(input, 2) % PAGES] = address(input);
		nodes[take(input, 2) % PAGES] = (int32_t)any(input, 3);
	}
	mask[0] = byte(input) & 3;
	if (way & 1)
		pf_mt_move_pages(&mt, 0, count, way & 2 ? pages : (uint64_t *)8,
				 way & 4 ? nodes : (int32_t *)8, status, (int32_t)any(input, 256));
	else if (way & 2)
		pf_mt_mbind(&mt, (uintptr_t)memory, any(input, PAGES + 1) << PAGE_SHIFT & (BYTES - 1),
			    (int32_t)any(input, 6), way & 4 ? mask : (uint64_t *)8,
			    any(input, 1026), (uint32_t)any(input, 256) | MOVE);
	else
		pf_mt_migrate_pages(&mt, 0, any(input, 1026), way & 4 ? mask : (uint64_t *)8, mask);
}

static void call_populate(struct input *input)
{
	uint32_t shift = (uint32_t)any(input, 24);
	uint64_t bytes = any(input, 1 << 22);
	int64_t start = pf_map(bytes % (1 << 22), shift, 0);

	pf_prefer_node((uintptr_t)memory + 1, any(input, BYTES), (int32_t)any(input, 3));
	if (start > 0) {
		pf_populate((uint64_t)start, any(input, bytes % (1 << 22)) % (1 << 22),
			    (int32_t)any(input, 2), shift, (uint32_t)any(input, 3) & 2,
			    (uint32_t)byte(input) % 3, NULL);
		if (pf_unmap((uint64_t)start, bytes % (1 << 22)))
			abort();
	}
	if (byte(input) & 1) {
		shift = byte(input) & 1 ? PAGE_SHIFT : 21;
		pf_pool_reserve((int32_t)any(input, 2), shift, any(input, 1 << 22) % (1 << 22),
				(uint32_t)byte(input) % 3, NULL);
		pf_pool_release(0, shift, any(input, 1 << 22));
		pf_pool_release(0, shift, UINT64_MAX);
	}
}

static void call_copy(struct input *input)
{
	static unsigned char to[BYTES / 2];
	uint64_t bytes = any(input, sizeof(to)) % sizeof(to);
	uint64_t from = any(input, BYTES / 2) % (BYTES / 2);
	uint32_t method = (uint32_t)any(input, PF_COPY_METHODS + 1);
	struct pf_copy_tuning tuning, now;
	int done;

	pf_copy_name(method);
	pf_copy_choose(bytes, method);
	done = pf_copy_pages(to, memory + from, bytes, method);
	if (!done && memcmp(to, memory + from, bytes))
		abort();
	memset(to, 0, bytes);
	done = pf_copy_pages_mthread(to, memory + from, bytes, (uint32_t)byte(input) % 4, NULL, method);
	if (done >= 0 && memcmp(to, memory + from, bytes))
		abort();
	pf_copy_pages(to, to + bytes / 2, bytes / 2 + 1, method);	/* overlaps: refused */
	pf_copy_tuned(&now);
	tuning = (struct pf_copy_tuning){
		.large_method = (uint32_t)any(input, PF_COPY_METHODS),
		.large_bytes = any(input, BYTES), .thread_bytes = any(input, BYTES),
	};
	pf_copy_tune(&tuning);
	pf_copy_tune(&now);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	static void (*const calls[])(struct input *) = {
		call_move, call_locate, call_user, call_exchange, call_mt, call_populate, call_copy,
	};
	struct input input = { .data = data, .left = size };

	if (!memory)
		memory_begin();
	while (input.left)
		calls[byte(&input) % (sizeof(calls) / sizeof(*calls))](&input);
	check();
	return 0;
}
