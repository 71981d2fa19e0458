// SPDX-License-Identifier: Apache-2.0
/*
 * The warm pool. A table of pieces of populated memory, sorted by nothing, in
 * static storage: taking and giving must not allocate, because a caller may
 * have the heap's own pages detached at that moment.
 */
#include <errno.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/mman.h>

#include "calls.h"
#include "pageferry.h"
#include "pool.h"
#include "signals.h"

enum {
	PIECES = 16384,
	SHELVES = 256,	/* pairs of node and page size in use at a time */
};

struct piece {
	uint64_t start;
	uint64_t bytes;		/* 0: the entry is free */
	uint32_t shelf;
};

/* Memory of one node and page size. Never given up once it has had a reservation. */
struct shelf {
	int32_t node;
	uint32_t shift;
	uint64_t reserved;	/* what it may hold */
	uint64_t held;		/* what it holds now */
};

static struct {
	pthread_mutex_t lock;
	sigset_t fork_before;	/* the signals of a thread that forks */
	struct shelf shelves[SHELVES];
	struct piece pieces[PIECES];
	uint32_t n_shelves;
	uint32_t n_pieces;	/* entries from here on are free */
} pool = { .lock = PTHREAD_MUTEX_INITIALIZER };

static pthread_once_t fork_once = PTHREAD_ONCE_INIT;

static void fork_prepare(void)
{
	sigset_t before;

	quiet_lock(&pool.lock, &before);
	pool.fork_before = before;
}

static void fork_parent(void)
{
	sigset_t before = pool.fork_before;

	quiet_unlock(&pool.lock, &before);
}

/* The mappings are not there in the child (MADV_DONTFORK): nothing to unmap. */
static void fork_child(void)
{
	pool.n_shelves = 0;
	pool.n_pieces = 0;
	pthread_mutex_init(&pool.lock, NULL);
	signals_restore(&pool.fork_before);
}

static void register_fork(void)
{
	pthread_atfork(fork_prepare, fork_parent, fork_child);
}

static struct shelf *find_shelf(int32_t node, uint32_t shift)
{
	uint32_t i;

	for (i = 0; i < pool.n_shelves; i++)
		if (pool.shelves[i].node == node && pool.shelves[i].shift == shift)
			return &pool.shelves[i];
	return NULL;
}

static struct shelf *make_shelf(int32_t node, uint32_t shift)
{
	struct shelf *shelf = find_shelf(node, shift);

	if (shelf || pool.n_shelves == SHELVES)
		return shelf;
	shelf = &pool.shelves[pool.n_shelves++];
	*shelf = (struct shelf){ .node = node, .shift = shift };
	return shelf;
}

/* Put a piece on the shelf, joined with its neighbours. False: the table is full. */
static bool keep(struct shelf *shelf, uint64_t start, uint64_t bytes)
{
	uint32_t index = (uint32_t)(shelf - pool.shelves);
	struct piece joined = { .start = start, .bytes = bytes, .shelf = index };
	struct piece *entry = NULL;
	uint32_t i;

	for (i = 0; i < pool.n_pieces; i++) {
		struct piece *piece = &pool.pieces[i];

		if (piece->bytes && piece->shelf == index) {
			if (piece->start + piece->bytes == joined.start)
				joined.start = piece->start;
			else if (piece->start != joined.start + joined.bytes)
				continue;
			joined.bytes += piece->bytes;
			piece->bytes = 0;
		}
		if (!piece->bytes)
			entry = piece;
	}
	if (!entry) {
		if (pool.n_pieces == PIECES)
			return false;
		entry = &pool.pieces[pool.n_pieces++];
	}
	*entry = joined;
	shelf->held += bytes;
	return true;
}

/* The smallest piece of at least that many bytes, or with bytes 0 the smallest there is. */
static struct piece *best_piece(const struct shelf *shelf, uint64_t bytes)
{
	uint32_t index = (uint32_t)(shelf - pool.shelves);
	struct piece *best = NULL;
	uint32_t i;

	for (i = 0; i < pool.n_pieces; i++) {
		struct piece *piece = &pool.pieces[i];

		if (piece->bytes && piece->shelf == index && piece->bytes >= bytes &&
		    (!best || piece->bytes < best->bytes))
			best = piece;
	}
	return best;
}

/* Cut the end off a piece. */
static uint64_t cut(struct shelf *shelf, struct piece *piece, uint64_t bytes)
{
	uint64_t start;

	piece->bytes -= bytes;
	shelf->held -= bytes;
	start = piece->start + piece->bytes;
	while (pool.n_pieces && !pool.pieces[pool.n_pieces - 1].bytes)
		pool.n_pieces--;
	return start;
}

static bool whole_pages(uint64_t bytes, uint32_t shift)
{
	return shift < 64 && !(bytes & (((uint64_t)1 << shift) - 1));
}

void *pool_take(int32_t node, uint32_t shift, size_t bytes)
{
	struct piece *piece;
	struct shelf *shelf;
	uint64_t start = 0;
	sigset_t before;

	if (!bytes || !whole_pages(bytes, shift))
		return NULL;
	quiet_lock(&pool.lock, &before);
	shelf = find_shelf(node, shift);
	piece = shelf ? best_piece(shelf, bytes) : NULL;
	if (piece)
		start = cut(shelf, piece, bytes);
	quiet_unlock(&pool.lock, &before);
	return (void *)(uintptr_t)start;
}

void pool_give(int32_t node, uint32_t shift, void *address, size_t bytes)
{
	uint64_t start = (uint64_t)(uintptr_t)address;
	uint64_t room = 0;
	struct shelf *shelf;
	sigset_t before;

	if (!bytes)
		return;
	/* Before it can be found here by another thread, or by a fork. */
	if (!madvise(address, bytes, MADV_DONTFORK)) {
		quiet_lock(&pool.lock, &before);
		shelf = find_shelf(node, shift);
		if (shelf && shelf->reserved > shelf->held)
			room = shelf->reserved - shelf->held;
		if (room > bytes)
			room = bytes;
		if (!whole_pages(room | start, shift) || !room || !keep(shelf, start, room))
			room = 0;
		quiet_unlock(&pool.lock, &before);
	}
	if (room < bytes)
		unmap_memory((void *)(uintptr_t)(start + room), bytes - room);
}

int pf_pool_reserve(int32_t node, uint32_t shift, uint64_t bytes, uint32_t threads,
		    const int32_t *cpus)
{
	struct shelf *shelf;
	sigset_t before;
	int64_t start;
	int result;

	if (node < 0 || node >= PF_MAX_NODES || !whole_pages(bytes, shift))
		return -EINVAL;
	if (!bytes)
		return 0;
	pthread_once(&fork_once, register_fork);
	/* A fork in between would leave the child this much address space, empty. */
	quiet_lock(&pool.lock, &before);
	shelf = make_shelf(node, shift);
	/* Page tables of its own, where it fills any: the user engine wants that. */
	start = shelf ? pf_map(bytes, shift < 21 && bytes % (2 << 20) == 0 ? 21 : shift, 0)
		      : -ENOMEM;
	if (start > 0 && madvise((void *)(uintptr_t)start, bytes, MADV_DONTFORK)) {
		unmap_memory((void *)(uintptr_t)start, bytes);
		start = -ENOMEM;
	}
	quiet_unlock(&pool.lock, &before);
	if (start < 0)
		return (int)start;
	result = pf_populate((uint64_t)start, bytes, node, shift, 0, threads, cpus);
	if (result >= 0) {
		quiet_lock(&pool.lock, &before);
		shelf->reserved += bytes;
		if (!keep(shelf, (uint64_t)start, bytes)) {
			shelf->reserved -= bytes;
			result = -ENOMEM;
		}
		quiet_unlock(&pool.lock, &before);
	}
	if (result < 0)
		unmap_memory((void *)(uintptr_t)start, bytes);
	return result;
}

int64_t pf_pool_release(int32_t node, uint32_t shift, uint64_t bytes)
{
	int64_t released = 0;
	struct shelf *shelf;
	sigset_t before;

	quiet_lock(&pool.lock, &before);
	shelf = find_shelf(node, shift);
	if (shelf && bytes < shelf->reserved && !whole_pages(bytes, shift)) {
		quiet_unlock(&pool.lock, &before);
		return -EINVAL;
	}
	if (shelf)
		shelf->reserved -= bytes < shelf->reserved ? bytes : shelf->reserved;
	while (shelf && shelf->held > shelf->reserved) {
		struct piece *piece = best_piece(shelf, 0);
		uint64_t part = shelf->held - shelf->reserved;
		uint64_t start;

		if (!piece)
			break;
		if (part > piece->bytes)
			part = piece->bytes;
		start = cut(shelf, piece, part);
		released += (int64_t)part;
		/* Freeing takes its time; takers and givers need not wait for it. */
		quiet_unlock(&pool.lock, &before);
		unmap_memory((void *)(uintptr_t)start, part);
		quiet_lock(&pool.lock, &before);
	}
	quiet_unlock(&pool.lock, &before);
	return released;
}

uint64_t pf_pool_bytes(int32_t node, uint32_t shift)
{
	const struct shelf *shelf;
	sigset_t before;
	uint64_t held;

	quiet_lock(&pool.lock, &before);
	shelf = find_shelf(node, shift);
	held = shelf ? shelf->held : 0;
	quiet_unlock(&pool.lock, &before);
	return held;
}
