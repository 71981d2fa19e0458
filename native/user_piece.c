// SPDX-License-Identifier: Apache-2.0
/*
 * Pages go back in with UFFDIO_MOVE or UFFDIO_COPY and never with mremap(2)
 * over the hole, for two reasons.
 *
 * Other threads may unmap, map, protect or remap a part of the piece while its
 * pages are away. MREMAP_FIXED would replace whatever is there by then, memory
 * that somebody else has just mapped included. UFFDIO_MOVE and UFFDIO_COPY
 * only fill missing pages of a mapping that this very userfaultfd watches, and
 * the kernel checks that under its own locks: a mapping that is gone or new
 * gets ENOENT or EINVAL, and a part whose protection changed gets its bytes
 * from UFFDIO_COPY, which does not ask for write permission.
 *
 * And the mapping stays what it was: its flags, its memory policy and its
 * anon_vma, so that the kernel merges it with its neighbours again when the
 * watch ends, and the number of mappings does not grow.
 *
 * With PF_USER_CHECKED the watch also hears of mremap and MADV_DONTNEED of
 * other threads, which wait until that has been read: bytes follow the memory
 * to where it went, and memory that was given up stays empty. The two other
 * ways take base pages with mremap(2), which would send such a message to the
 * very thread that calls it, so there nobody may do that meanwhile.
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
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#include "pool.h"
#include "user_engine.h"
#include "userfault.h"

#ifndef MREMAP_DONTUNMAP
#define MREMAP_DONTUNMAP 4
#endif

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
	return 0;
}

void lane_close(struct lane *lane)
{
	if (lane->watch >= 0)
		close(lane->watch);
	if (lane->side_watch >= 0)
		close(lane->side_watch);
	lane->watch = lane->side_watch = -1;
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

/* ---- What other threads do to the mapping meanwhile ---------------------------------- */

/* Cut so that a place begins at this address. */
static void cut_at(struct piece *piece, uint64_t address)
{
	uint32_t i;

	for (i = 0; i < piece->n_places; i++) {
		struct place *place = &piece->places[i];
		uint64_t before = address - place->address;

		if (place->dropped || address <= place->address || before >= place->bytes)
			continue;
		if (piece->n_places == PIECE_PLACES) {
			/* Hundreds of remappings in milliseconds. Bytes must not get lost. */
			fputs("pageferry: too many changes of one mapping at once\n", stderr);
			abort();
		}
		piece->places[piece->n_places++] = (struct place){
			.offset = place->offset + before,
			.bytes = place->bytes - before,
			.address = address,
		};
		place->bytes = before;
		return;
	}
}

static void changed(struct piece *piece, uint64_t start, uint64_t bytes, bool dropped, uint64_t to)
{
	uint32_t i;

	cut_at(piece, start);
	cut_at(piece, start + bytes);
	for (i = 0; i < piece->n_places; i++) {
		struct place *place = &piece->places[i];

		if (place->dropped || place->address < start || place->address >= start + bytes)
			continue;
		if (dropped)
			place->dropped = true;
		else
			place->address = to + (place->address - start);
	}
}

/*
 * The thread that called madvise() goes on once its message has been read, and
 * empties the range some time later. Pages that are put in again already would
 * be there until then, and if the next piece took them away just before, would
 * come back after. So they leave here, while the piece is watched: until the
 * watch ends, no new page can be in their place.
 */
static void drop(struct lane *lane, uint64_t start, uint64_t bytes)
{
	void *bin = mmap(NULL, bytes, PROT_READ | PROT_WRITE,
			 MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

	if (bin == MAP_FAILED)
		return;
	if (!userfault_register(lane->side_watch, (uintptr_t)bin, bytes,
				UFFDIO_REGISTER_MODE_MISSING))
		userfault_move_some(lane->side_watch, (uintptr_t)bin, start, bytes, lane->page);
	munmap(bin, bytes);
}

/* Read what the watch has to say; it lets the threads go on that said it. */
static bool hear(struct lane *lane)
{
	struct uffd_msg message;
	bool heard = false;

	while (userfault_next(lane->watch, &message)) {
		heard = true;
		if (message.event == UFFD_EVENT_REMAP) {
			changed(&lane->piece, message.arg.remap.from, message.arg.remap.len,
				false, message.arg.remap.to);
			lane->disturbed = true;
		} else if (message.event == UFFD_EVENT_REMOVE) {
			uint64_t start = message.arg.remove.start;
			uint64_t bytes = message.arg.remove.end - start;

			changed(&lane->piece, start, bytes, true, 0);
			drop(lane, start, bytes);
		} else if (message.event == UFFD_EVENT_PAGEFAULT &&
			   message.arg.pagefault.address - lane->piece.address >=
				   lane->piece.bytes) {
			/* mremap(2) has made a mapping longer while it was watched. */
			lane->disturbed = true;
		}
	}
	return heard;
}

static const struct place *place_of(const struct piece *piece, uint64_t offset)
{
	uint32_t i;

	for (i = 0; i < piece->n_places; i++)
		if (offset - piece->places[i].offset < piece->places[i].bytes)
			return &piece->places[i];
	abort();	/* the places always cover the piece */
}

/* ---- Taking ------------------------------------------------------------------------- */

/* Page tables that go over as a whole are cheap; only base pages are in some. */
static bool taken_by_remap(const struct lane *lane)
{
	return lane->way != PF_USER_CHECKED && lane->piece.shift < 21;
}

int piece_begin(struct lane *lane, uint64_t address, uint64_t bytes, uint32_t shift)
{
	struct piece *piece = &lane->piece;
	uint64_t mode = lane->way == PF_USER_PROTECT ? UFFDIO_REGISTER_MODE_WP
						     : UFFDIO_REGISTER_MODE_MISSING;
	int error;

	/* Somebody waits outside of the last piece: see hear(). */
	hear(lane);
	if (lane->disturbed)
		watch_renew(lane);
	piece->address = address;
	piece->bytes = bytes;
	piece->shift = shift;
	piece->n_spans = piece->n_left = 0;
	piece->bytes_taken = piece->bytes_put = 0;
	piece->side_torn = false;
	piece->n_places = 1;
	piece->places[0] = (struct place){ .bytes = bytes, .address = address };
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
			 * a base page and did not count it (seen when another thread
			 * takes a copy-on-write fault on the next one).
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
 * its pages at once, and it could not be merged with its neighbours again.
 */
static void take_by_remap(struct lane *lane)
{
	struct piece *piece = &lane->piece;
	uint64_t half = piece->bytes / 2 & ~(lane->page - 1);
	uint64_t offset = 0;

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

/* ---- Putting --------------------------------------------------------------------------- */

static void pause_for_memory(void)
{
	struct timespec time = { .tv_nsec = 1000000 };

	nanosleep(&time, NULL);
}

/*
 * Where pages cannot be moved in: fill with new ones. 0: done is done. EAGAIN:
 * look again where the bytes belong. Else nothing of this length can be there.
 */
static int fill_span(struct lane *lane, uint64_t target, uint64_t source, uint64_t bytes,
		     uint64_t *done)
{
	int error;

	for (;;) {
		*done = userfault_copy(lane->watch, target, source, bytes, &error);
		if (*done || error != ENOMEM)
			return *done ? 0 : error;
		pause_for_memory();	/* no choice: the bytes must go back */
	}
}

/* Put the pages of one span in, wherever its parts are by now. */
static void put_span(struct lane *lane, const struct span *span, uint64_t from)
{
	struct piece *piece = &lane->piece;
	uint64_t offset = span->offset;
	uint64_t end = span->offset + span->bytes;
	uint64_t most = span->bytes;

	while (offset < end) {
		const struct place *place = place_of(piece, offset);
		uint64_t bytes = place->offset + place->bytes - offset;
		uint64_t target = place->address + (offset - place->offset);
		uint64_t done;
		int error;

		if (bytes > end - offset)
			bytes = end - offset;
		if (place->dropped) {
			offset += bytes;
			continue;
		}
		if (bytes > most)
			bytes = most;
		done = userfault_move(lane->watch, target, from + offset, bytes, &error);
		offset += done;
		piece->bytes_put += done;
		if (!error) {
			most *= 2;
			continue;
		}
		bytes -= done;
		if (error != EAGAIN) {	/* another protection, or a border of mappings */
			error = fill_span(lane, target + done, from + offset, bytes, &done);
			if (!error) {
				offset += done;
				piece->bytes_put += done;
				continue;
			}
		}
		if (error == EAGAIN) {
			if (!hear(lane))
				sched_yield();
			continue;
		}
		if (error == EEXIST) {	/* put, and not counted, as above */
			offset += lane->page;
			piece->bytes_put += lane->page;
			continue;
		}
		if (bytes > lane->page)
			most = bytes / 2 & ~(lane->page - 1);
		else
			offset += lane->page;	/* unmapped, or somebody else's by now */
	}
}

void piece_put(struct lane *lane, uint64_t from)
{
	uint32_t i;

	for (i = 0; i < lane->piece.n_spans; i++)
		put_span(lane, &lane->piece.spans[i], from);
}

/* Has nobody moved or emptied any part of the piece, as far as was heard? */
static bool in_its_place(const struct piece *piece)
{
	return piece->n_places == 1 && !piece->places[0].dropped &&
	       piece->places[0].address == piece->address;
}

int piece_fill(struct lane *lane)
{
	struct piece *piece = &lane->piece;
	uint32_t i;

	for (i = 0; i < piece->n_spans; i++) {
		const struct span *span = &piece->spans[i];
		struct span rest = *span;
		uint64_t done = 0;
		int error = 0;

		if (in_its_place(piece))
			done = userfault_copy(lane->watch, piece->address + span->offset,
					      piece->side.start + span->offset, span->bytes, &error);
		rest.offset += done;
		rest.bytes -= done;
		piece->bytes_put += done;
		if (rest.bytes && (lane->features & PF_USER_HAS_MOVE) && error == ENOMEM) {
			/* Put the old pages back, this rest and all that follow. */
			put_span(lane, &rest, piece->side.start);
			while (++i < piece->n_spans)
				put_span(lane, &piece->spans[i], piece->side.start);
			return -ENOMEM;
		}
		while (rest.bytes) {	/* changed by another thread: step by step */
			uint64_t bytes = rest.bytes;
			const struct place *place = place_of(piece, rest.offset);
			uint64_t target = place->address + (rest.offset - place->offset);
			uint64_t in_place = place->offset + place->bytes - rest.offset;

			if (bytes > in_place)
				bytes = in_place;
			if (!place->dropped) {
				error = fill_span(lane, target, piece->side.start + rest.offset, bytes,
						  &done);
				if (error && error != EAGAIN && bytes > lane->page) {
					bytes = lane->page;
					error = fill_span(lane, target, piece->side.start + rest.offset,
							  bytes, &done);
				}
				if (error == EAGAIN) {
					if (!hear(lane))
						sched_yield();
					continue;
				}
				if (!error) {
					piece->bytes_put += done;
					bytes = done;
				}
			}
			rest.offset += bytes;
			rest.bytes -= bytes;
		}
	}
	return 0;
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
			if (!hear(lane))
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
		munmap(at(piece->side.map), piece->side.start - piece->side.map);
	for (i = 0; i < piece->n_spans; i++)
		munmap(at(piece->side.start + piece->spans[i].offset), piece->spans[i].bytes);
	if (piece->side.map + piece->side.map_bytes > end)
		munmap(at(end), piece->side.map + piece->side.map_bytes - end);
}

void piece_free(struct lane *lane)
{
	if (lane->piece.side_torn)
		free_torn(&lane->piece);
	else
		munmap(at(lane->piece.side.map), lane->piece.side.map_bytes);
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
		munmap(at(piece->side.map), piece->side.start - piece->side.map);
	if (map_end > end)
		munmap(at(end), map_end - end);
	pf_prefer_node(piece->side.start, piece->bytes, node);
	madvise(at(piece->side.start), piece->bytes,
		1ull << piece->shift == lane->page ? MADV_NOHUGEPAGE : MADV_HUGEPAGE);
	pool_give(node, piece->shift, at(piece->side.start), piece->bytes);
}
