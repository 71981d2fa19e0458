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
 * Both can fail for want of memory: UFFDIO_COPY takes a page. No signal is let
 * in meanwhile, so it is asked for again for PIECE_PATIENCE milliseconds and no
 * longer; then the pages go in that are there: remap_back(), move_regardless().
 */
#include <errno.h>
#include <sched.h>
#include <sys/mman.h>
#include <time.h>

#include "mapping.h"
#include "user_engine.h"
#include "userfault.h"

static void *at(uint64_t address)
{
	return (void *)(uintptr_t)address;
}

static void pause_for_memory(void)
{
	struct timespec time = { .tv_nsec = 1000000 };

	nanosleep(&time, NULL);
}

/*
 * Where pages cannot be moved in: fill with new ones. 0: done is done. EAGAIN:
 * look again where the bytes belong. ENOMEM: no memory for longer than a piece
 * should wait. Else nothing of this length can be there.
 */
static int fill_span(struct lane *lane, uint64_t target, uint64_t source, uint64_t bytes,
		     uint64_t *done)
{
	int error;

	for (;;) {
		*done = userfault_copy(lane->watch, target, source, bytes, &error);
		if (*done || error != ENOMEM)
			return *done ? 0 : error;
		if (!lane->piece.patience)
			return ENOMEM;
		lane->piece.patience--;
		pause_for_memory();
	}
}

/*
 * There is no page to fill with, and the mapping differs from that of the page
 * that is to go in: another thread has protected or locked it meanwhile. The
 * bytes come first, so the difference goes for the moment of UFFDIO_MOVE; an
 * access in this moment succeeds that should have failed.
 */
static uint64_t move_regardless(struct lane *lane, uint64_t target, uint64_t source,
				uint64_t bytes, int *error)
{
	struct mapping mapping;
	uint64_t done;
	int tries;

	*error = -mapping_at(target, &mapping);
	if (*error) {	/* not mapped, or the kernel cannot say for the moment */
		*error = *error == ENOENT ? ENOENT : ENOMEM;
		return 0;
	}
	if (bytes > mapping.end - target)
		bytes = mapping.end - target;
	/* The whole of it, so that no mapping must be divided, which takes memory. */
	if (mprotect(at(mapping.start), mapping.end - mapping.start, PROT_READ | PROT_WRITE)) {
		*error = errno;
		return 0;
	}
	done = userfault_move(lane->watch, target, source, bytes, error);
	if (!done && *error == EINVAL && !mlock2(at(source), bytes, MLOCK_ONFAULT))
		done = userfault_move(lane->watch, target, source, bytes, error);
	for (tries = 0; tries < PIECE_PATIENCE; tries++) {
		if (!mprotect(at(mapping.start), mapping.end - mapping.start, mapping.protection) ||
		    errno != ENOMEM)
			break;
		pause_for_memory();
	}
	return done;
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
			if (most < span->bytes)
				most *= 2;
			continue;
		}
		bytes -= done;
		/*
		 * Another protection, or a border of mappings. With EEXIST the page has
		 * left the side mapping, which is watched: to read there is to wait forever.
		 */
		if (error != EAGAIN && error != EEXIST) {
			target += done;
			error = fill_span(lane, target, from + offset, bytes, &done);
			if (error == ENOMEM)
				done = move_regardless(lane, target, from + offset, bytes, &error);
			if (done) {
				offset += done;
				piece->bytes_put += done;
				continue;
			}
		}
		if (error == ENOMEM) {	/* not even for a page table: the bytes have no other place */
			pause_for_memory();
			continue;
		}
		if (error == EAGAIN) {
			if (!lane_hear(lane))
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

/*
 * Only with base pages that were taken by mremap(2), when no other thread may do
 * anything to the mapping: it comes back as it was. Both ends stay mapped.
 */
static void remap_back(struct piece *piece, uint64_t offset, uint64_t bytes)
{
	while (mremap(at(piece->side.start + offset), bytes, bytes,
		      MREMAP_MAYMOVE | MREMAP_FIXED | MREMAP_DONTUNMAP,
		      at(piece->address + offset)) == MAP_FAILED && errno == ENOMEM)
		pause_for_memory();	/* for the kernel's note of a mapping */
}

/* The old pages go back: this rest and all spans from number i on. */
static void put_back(struct lane *lane, const struct span *rest, uint32_t i)
{
	struct piece *piece = &lane->piece;

	for (;;) {
		if (lane->features & PF_USER_HAS_MOVE)
			put_span(lane, rest, piece->side.start);
		else
			remap_back(piece, rest->offset, rest->bytes);
		if (i == piece->n_spans)
			return;
		rest = &piece->spans[i++];
	}
}

/* The part of a span that could not be filled in one go. What is left of it after ENOMEM. */
static int fill_rest(struct lane *lane, struct span *rest)
{
	struct piece *piece = &lane->piece;

	while (rest->bytes) {	/* changed by another thread: step by step */
		uint64_t bytes = rest->bytes;
		const struct place *place = place_of(piece, rest->offset);
		uint64_t target = place->address + (rest->offset - place->offset);
		uint64_t in_place = place->offset + place->bytes - rest->offset;
		uint64_t source = piece->side.start + rest->offset;
		uint64_t done;
		int error = 0;

		if (bytes > in_place)
			bytes = in_place;
		if (!place->dropped) {
			error = fill_span(lane, target, source, bytes, &done);
			if (error && error != EAGAIN && error != ENOMEM && bytes > lane->page) {
				bytes = lane->page;
				error = fill_span(lane, target, source, bytes, &done);
			}
			if (error == ENOMEM)
				return -ENOMEM;
			if (error == EAGAIN) {
				if (!lane_hear(lane))
					sched_yield();
				continue;
			}
			if (!error) {
				piece->bytes_put += done;
				bytes = done;
			}
		}
		rest->offset += bytes;
		rest->bytes -= bytes;
	}
	return 0;
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
		/* Where that is free of cost, at once. */
		if (error == ENOMEM && (lane->features & PF_USER_HAS_MOVE))
			error = -ENOMEM;
		else
			error = fill_rest(lane, &rest);
		if (error) {
			put_back(lane, &rest, i + 1);
			return error;
		}
	}
	return 0;
}
