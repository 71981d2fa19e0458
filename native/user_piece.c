// SPDX-License-Identifier: Apache-2.0
/*
 * Lanes, and taking the pages of a piece away. How they come back: user_put.c.
 *
 * mremap(2) locks two page tables, one after the other, and relies on the mmap
 * lock to be alone in that. UFFDIO_MOVE locks two as well and does not take
 * that lock, so the two can lock up CPUs for good when they have both tables in
 * common (seen on Linux 6.12). A page table spans 2 MiB of addresses, so the
 * mappings that pages are taken to and from share that much with nobody:
 * map_apart().
 *
 * One gap cannot be closed from user space: UFFDIO_MOVE does not check that the
 * mapping it takes pages *from* is the one that was registered. A thread that
 * unmaps the piece while another maps and fills the same addresses, both in
 * the microsecond between these two calls, would have its new pages taken.
 * So nobody may unmap memory that is being moved unless the whole move is to be
 * given up; Python keeps a reference on the owner of the memory.
 */
#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <sys/mman.h>
#include <unistd.h>

#include "calls.h"
#include "mapping.h"
#include "pool.h"
#include "user_engine.h"
#include "userfault.h"

static void *at(uint64_t address)
{
	return (void *)(uintptr_t)address;
}

/* ---- Lanes ---------------------------------------------------------------------- */

/* The side mapping must not send messages about our own doings. */
static int watch_open(struct lane *lane)
{
	uint64_t features = 0;
	int fd;

	if (lane->way == PF_USER_PROTECT)
		features |= UFFD_FEATURE_PAGEFAULT_FLAG_WP |
			    (lane->features & PF_USER_HAS_PROTECT_ABSENT ?
			     UFFD_FEATURE_WP_UNPOPULATED : 0);
	if (lane->way == PF_USER_CHECKED)
		features |= UFFD_FEATURE_EVENT_REMAP | UFFD_FEATURE_EVENT_REMOVE;
	fd = userfault_open(features);
	lane->watch = fd < 0 ? -1 : fd;
	return fd < 0 ? fd : 0;
}

/* Memory that was watched went elsewhere. The end of the watch ends that. */
static void watch_renew(struct lane *lane)
{
	close(lane->watch);
	watch_open(lane);
	lane->disturbed = false;
}

int lane_open(struct lane *lane, uint32_t way, uint32_t features)
{
	int error;

	lane->way = way;
	lane->features = features;
	lane->page = (uint64_t)sysconf(_SC_PAGESIZE);
	error = watch_open(lane);
	if (error)
		return error;
	if (features & PF_USER_HAS_MOVE) {
		lane->side_watch = userfault_open(0);
		if (lane->side_watch < 0) {
			error = lane->side_watch;
			lane_close(lane);
			return error;
		}
	}
	/* Without it a piece is not looked at first: see take_by_remap(). */
	if (way != PF_USER_CHECKED)
		lane->maps = open("/proc/self/maps", O_RDONLY | O_CLOEXEC);
	return 0;
}

void lane_close(struct lane *lane)
{
	if (lane->watch >= 0)
		close(lane->watch);
	if (lane->side_watch >= 0)
		close(lane->side_watch);
	if (lane->maps >= 0)
		close(lane->maps);
	lane->watch = lane->side_watch = lane->maps = -1;
}

int map_apart(uint64_t bytes, uint64_t like, struct apart *apart)
{
	uint64_t room = bytes + 3 * HUGE_BYTES;
	void *memory = mmap(NULL, room, PROT_READ | PROT_WRITE,
			    MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

	if (memory == MAP_FAILED)
		return -errno;
	/* Best effort: forks wait for the engine, and only a raw clone would see it. */
	madvise(memory, room, MADV_DONTFORK);
	apart->map = (uintptr_t)memory;
	apart->map_bytes = room;
	apart->start = apart->map + HUGE_BYTES - apart->map % HUGE_BYTES + like % HUGE_BYTES;
	return 0;
}

/* ---- Taking ------------------------------------------------------------------------- */

/*
 * Page tables that go over as a whole are cheap; only base pages are in some. A
 * single page cannot be taken in halves: see take_by_remap().
 */
static bool taken_by_remap(const struct lane *lane)
{
	return lane->way != PF_USER_CHECKED && lane->piece.shift < 21 &&
	       lane->piece.bytes > lane->page;
}

int piece_begin(struct lane *lane, uint64_t address, uint64_t bytes, uint32_t shift)
{
	struct piece *piece = &lane->piece;
	uint64_t mode = lane->way == PF_USER_PROTECT ? UFFDIO_REGISTER_MODE_WP
						     : UFFDIO_REGISTER_MODE_MISSING;
	int error;

	/* Somebody waits outside of the last piece: see lane_hear(). */
	lane_hear(lane);
	if (lane->disturbed)
		watch_renew(lane);
	piece->address = address;
	piece->bytes = bytes;
	piece->shift = shift;
	piece->n_spans = piece->n_left = 0;
	piece->bytes_taken = piece->bytes_put = 0;
	piece->side_torn = false;
	piece->patience = PIECE_PATIENCE;
	places_begin(piece);
	error = map_apart(bytes, address, &piece->side);
	if (error)
		return error;
	if (!taken_by_remap(lane))
		error = userfault_register(lane->side_watch, piece->side.map, piece->side.map_bytes,
					   UFFDIO_REGISTER_MODE_MISSING);
	if (!error)
		error = userfault_register(lane->watch, address, bytes, mode);
	if (!error && lane->way == PF_USER_PROTECT) {
		error = userfault_protect(lane->watch, address, bytes, true);
		if (error)
			piece_end(lane);
	}
	if (error)
		piece_free(lane);
	return error;
}

static void note(struct span *spans, uint32_t *count, uint64_t offset, uint64_t bytes, int error)
{
	struct span *last = *count ? &spans[*count - 1] : NULL;

	if (last && last->offset + last->bytes == offset && last->error == error)
		last->bytes += bytes;
	else
		spans[(*count)++] = (struct span){ .offset = offset, .bytes = bytes, .error = error };
}

static void note_taken(struct piece *piece, uint64_t offset, uint64_t bytes)
{
	if (bytes)
		note(piece->spans, &piece->n_spans, offset, bytes, 0);
	piece->bytes_taken += bytes;
}

static void note_left(struct piece *piece, uint64_t offset, uint64_t bytes, int error)
{
	if (bytes)
		note(piece->left, &piece->n_left, offset, bytes, error);
}

/* The kernel looks at every page, and stops at one that it must not take. */
static void take_by_move(struct lane *lane)
{
	struct piece *piece = &lane->piece;
	uint64_t size = 1ull << piece->shift;
	uint64_t offset = 0;

	while (offset < piece->bytes) {
		int error;
		uint64_t done = userfault_move(lane->side_watch, piece->side.start + offset,
					       piece->address + offset, piece->bytes - offset,
					       &error);

		note_taken(piece, offset, done);
		offset += done;
		if (!error)
			continue;
		if (error == EAGAIN) {
			sched_yield();
			continue;
		}
		if (error == EEXIST) {
			/*
			 * Only this loop fills the side mapping: Linux 6.18 has moved
			 * a base page and did not count it (after another thread has
			 * changed it at that moment).
			 */
			note_taken(piece, offset, lane->page);
			offset += lane->page;
			continue;
		}
		/* Absent, pinned, shared: this page. Anything else holds for the rest, too. */
		if ((error != ENOENT && error != EBUSY) || piece->n_left == PIECE_SPANS - 1 ||
		    piece->n_spans == PIECE_SPANS) {
			/* An absent page says nothing of those behind it. */
			note_left(piece, offset, piece->bytes - offset,
				  error == ENOENT ? EINVAL : error);
			return;
		}
		/* Inside of a huge page: another thread has split it meanwhile. */
		done = offset % size ? lane->page : size;
		note_left(piece, offset, done, error);
		offset += done;
	}
}

/*
 * In two halves: the kernel takes the anon_vma from a mapping that loses all
 * its pages at once, and it could not be merged with its neighbours again. Where
 * a piece is in two mappings, half of it can be the whole of one: it is left.
 */
static void take_by_remap(struct lane *lane)
{
	struct piece *piece = &lane->piece;
	uint64_t half = piece->bytes / 2 & ~(lane->page - 1);
	uint64_t mapped = lane->maps < 0 ? 0 : mapping_end(lane->maps, piece->address);
	uint64_t offset = 0;

	if (mapped && mapped < piece->address + piece->bytes) {
		note_left(piece, 0, piece->bytes, EINVAL);
		return;
	}
	if (half > HUGE_BYTES)
		half -= (piece->address + half) % HUGE_BYTES;
	while (offset < piece->bytes) {
		uint64_t bytes = offset < half ? half : piece->bytes - offset;

		if (mremap(at(piece->address + offset), bytes, bytes,
			   MREMAP_MAYMOVE | MREMAP_FIXED | MREMAP_DONTUNMAP,
			   at(piece->side.start + offset)) == MAP_FAILED) {
			note_left(piece, offset, bytes, errno);
			piece->side_torn = true;
		} else {
			note_taken(piece, offset, bytes);
			/* Without UFFDIO_MOVE it may have to go back as it is. */
			if (lane->features & PF_USER_HAS_MOVE)
				madvise(at(piece->side.start + offset), bytes, MADV_DONTFORK);
		}
		offset += bytes;
	}
}

void piece_take(struct lane *lane)
{
	struct piece *piece = &lane->piece;

	if (lane->way == PF_USER_PROTECT) {
		int error = userfault_register(lane->watch, piece->address, piece->bytes,
					       UFFDIO_REGISTER_MODE_WP |
					       UFFDIO_REGISTER_MODE_MISSING);

		if (error) {
			note_left(piece, 0, piece->bytes, -error);
			return;
		}
	}
	if (taken_by_remap(lane))
		take_by_remap(lane);
	else
		take_by_move(lane);
}

void piece_end(struct lane *lane)
{
	struct piece *piece = &lane->piece;

	if (lane->way == PF_USER_PROTECT && piece->n_left)
		userfault_protect(lane->watch, piece->address, piece->bytes, false);
	for (;;) {
		if (userfault_unregister(lane->watch, piece->address, piece->bytes))
			lane->disturbed = true;
		if (lane->way != PF_USER_CHECKED || !userfault_changing(lane->watch))
			break;
		/* Somebody was faster. It must not go on unwatched: see drop(). */
		if (userfault_register(lane->watch, piece->address, piece->bytes,
				       UFFDIO_REGISTER_MODE_MISSING))
			lane->disturbed = true;
		while (userfault_changing(lane->watch))
			if (!lane_hear(lane))
				sched_yield();
	}
	/* Parts that are not mapped any more: whoever waits there must find that out. */
	userfault_wake(lane->watch, piece->address, piece->bytes);
	if (lane->disturbed)
		watch_renew(lane);
}

/*
 * mremap(2) empties its target before it looks at much else. Where it has failed,
 * another thread may have mapped something by now; that stays, and so does at
 * worst an empty part of the side mapping.
 */
static void free_torn(const struct piece *piece)
{
	uint64_t end = piece->side.start + piece->bytes;
	uint32_t i;

	if (piece->side.start > piece->side.map)
		unmap_memory(at(piece->side.map), piece->side.start - piece->side.map);
	for (i = 0; i < piece->n_spans; i++)
		unmap_memory(at(piece->side.start + piece->spans[i].offset),
			     piece->spans[i].bytes);
	if (piece->side.map + piece->side.map_bytes > end)
		unmap_memory(at(end), piece->side.map + piece->side.map_bytes - end);
}

void piece_free(struct lane *lane)
{
	if (lane->piece.side_torn)
		free_torn(&lane->piece);
	else
		unmap_memory(at(lane->piece.side.map), lane->piece.side.map_bytes);
}

void piece_give(struct lane *lane, int32_t node)
{
	struct piece *piece = &lane->piece;
	uint64_t end = piece->side.start + piece->bytes;
	uint64_t map_end = piece->side.map + piece->side.map_bytes;

	if (userfault_unregister(lane->side_watch, piece->side.map, piece->side.map_bytes)) {
		piece_free(lane);
		return;
	}
	if (piece->side.start > piece->side.map)
		unmap_memory(at(piece->side.map), piece->side.start - piece->side.map);
	if (map_end > end)
		unmap_memory(at(end), map_end - end);
	pf_prefer_node(piece->side.start, piece->bytes, node);
	madvise(at(piece->side.start), piece->bytes,
		1ull << piece->shift == lane->page ? MADV_NOHUGEPAGE : MADV_HUGEPAGE);
	pool_give(node, piece->shift, at(piece->side.start), piece->bytes);
}
