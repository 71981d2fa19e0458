// SPDX-License-Identifier: Apache-2.0
/*
 * Where the parts of a piece are, as other threads remap and empty them while
 * its pages are away: the watch of PF_USER_CHECKED hears of that.
 */
#include <stdlib.h>
#include <sys/mman.h>

#include "calls.h"
#include "user_engine.h"
#include "userfault.h"

void places_begin(struct piece *piece)
{
	piece->n_places = 1;
	piece->places[0] = (struct place){ .bytes = piece->bytes, .address = piece->address };
}

/* Cut so that a place begins at this address. */
static void cut_at(struct piece *piece, uint64_t address)
{
	uint32_t i;

	for (i = 0; i < piece->n_places; i++) {
		struct place *place = &piece->places[i];
		uint64_t before = address - place->address;

		if (place->dropped || address <= place->address || before >= place->bytes)
			continue;
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
	unmap_memory(bin, bytes);
}

bool lane_hear(struct lane *lane)
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

const struct place *place_of(const struct piece *piece, uint64_t offset)
{
	uint32_t i;

	for (i = 0; i < piece->n_places; i++)
		if (offset - piece->places[i].offset < piece->places[i].bytes)
			return &piece->places[i];
	abort();	/* the places always cover the piece */
}

bool in_its_place(const struct piece *piece)
{
	return piece->n_places == 1 && !piece->places[0].dropped &&
	       piece->places[0].address == piece->address;
}
