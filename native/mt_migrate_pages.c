// SPDX-License-Identifier: Apache-2.0
/*
 * migrate_pages(2) by several threads. The kernel maps the old nodes onto the
 * new ones and moves the pages of one old node after the other (see
 * do_migrate_pages in mm/mempolicy.c). For each such pair, threads move what
 * they find on the old node. When some page did not move, the kernel is asked
 * for the same pair, finds what is left, and says how many pages would not move.
 */
#include <errno.h>
#include <string.h>

#include "calls.h"
#include "mt_calls.h"
#include "pages.h"

enum { NODES = PF_MAX_NODES, MAPS_BYTES = 32 << 10 };

struct pair {
	int32_t from;
	int32_t to;
};

/* ---- Which old node goes to which new one --------------------------------------- */

static bool has(const uint64_t *nodes, int32_t node)
{
	return nodes[node / 64] >> (node % 64) & 1;
}

static int32_t weight(const uint64_t *nodes)
{
	int32_t count = 0, i;

	for (i = 0; i < PF_NODE_WORDS; i++)
		count += __builtin_popcountll(nodes[i]);
	return count;
}

/* The nodes of a set that are lower than node. */
static int32_t rank(const uint64_t *nodes, int32_t node)
{
	int32_t count = 0, i;

	for (i = 0; i < node; i++)
		count += has(nodes, i);
	return count;
}

/* The member of a set at a place, counted from 0 and round. */
static int32_t member(const uint64_t *nodes, int32_t place)
{
	int32_t i;

	place %= weight(nodes);
	for (i = 0; i < NODES; i++)
		if (has(nodes, i) && !place--)
			return i;
	return -1;
}

/*
 * The next pair, and take its old node out of left; false: none is left. A
 * pair whose new node is no old one still to be emptied comes first.
 */
static bool next_pair(const uint64_t *from, const uint64_t *to, uint64_t *left,
		      struct pair *pair)
{
	bool even = weight(from) == weight(to);
	int32_t node;

	pair->from = -1;
	for (node = 0; node < NODES; node++) {
		int32_t target;

		if (!has(left, node) || (!even && has(to, node)))
			continue;
		target = member(to, rank(from, node));
		if (target == node)
			continue;
		pair->from = node;
		pair->to = target;
		if (!has(left, target))
			break;
	}
	if (pair->from < 0)
		return false;
	left[pair->from / 64] &= ~(1ull << pair->from % 64);
	return true;
}

/* ---- The mappings of the process --------------------------------------------------- */

struct maps {
	int fd;
	bool failed;
	uint64_t filled;
	uint64_t at;
	char text[MAPS_BYTES];
};

static int next_char(struct maps *maps)
{
	if (maps->at == maps->filled) {
		long got = raw_call(SYS_read, maps->fd, (long)maps->text, MAPS_BYTES, 0, 0, 0);

		if (got <= 0) {
			maps->failed = got < 0;
			return -1;
		}
		maps->filled = (uint64_t)got;
		maps->at = 0;
	}
	return (unsigned char)maps->text[maps->at++];
}

static bool next_number(struct maps *maps, char end, uint64_t *number)
{
	int c;

	*number = 0;
	while ((c = next_char(maps)) != end) {
		if (c >= '0' && c <= '9')
			*number = *number << 4 | (uint64_t)(c - '0');
		else if (c >= 'a' && c <= 'f')
			*number = *number << 4 | (uint64_t)(c - 'a' + 10);
		else
			return false;
	}
	return true;
}

/* START-END and the rest of a line of /proc/PID/maps. */
static bool next_mapping(struct maps *maps, uint64_t *start, uint64_t *end)
{
	int c;

	if (!next_number(maps, '-', start) || !next_number(maps, ' ', end))
		return false;
	while ((c = next_char(maps)) != '\n')
		if (c < 0)
			return false;
	return true;
}

/* ---- Moving ---------------------------------------------------------------------------- */

/* Can the process have pages on no other node than these two? */
static bool only_two_nodes(const struct pf_mt *mt, struct pair pair)
{
	return weight(mt->memory_nodes) == 2 && has(mt->memory_nodes, pair.from) &&
	       has(mt->memory_nodes, pair.to);
}

/* True: every page that there was has moved. What cannot be listed is for the kernel. */
static bool move_pair(struct mt_mover *mover, const struct pf_mt *mt, int32_t pid,
		      struct pair pair, bool shared)
{
	struct maps *maps = map_memory(sizeof(*maps));
	uint64_t sources[PF_NODE_WORDS] = { 0 };
	uint64_t start, end;
	bool listed;

	mover->left = 0;
	sources[pair.from / 64] = 1ull << pair.from % 64;
	if (maps)
		maps->fd = open_proc(pid, "maps");
	listed = mt_mover_begin(mover, mt, pid, pair.to,
				only_two_nodes(mt, pair) ? NULL : sources, shared) &&
		 maps && maps->fd >= 0;
	while (listed && next_mapping(maps, &start, &end))
		if ((int64_t)end >= 0)	/* not the kernel's own, vsyscall */
			mt_mover_add(mover, start, end);
	mt_mover_end(mover);
	listed = listed && !maps->failed;
	if (maps && maps->fd >= 0)
		raw_call(SYS_close, maps->fd, 0, 0, 0, 0, 0);
	unmap_memory(maps, sizeof(*maps));
	return listed && !mover->left;
}

static int64_t kernel_pair(int32_t pid, struct pair pair)
{
	uint64_t from[PF_NODE_WORDS] = { 0 };
	uint64_t to[PF_NODE_WORDS] = { 0 };

	from[pair.from / 64] = 1ull << pair.from % 64;
	to[pair.to / 64] = 1ull << pair.to % 64;
	return pf_sys_migrate_pages(pid, NODES + 1, from, to);
}

static int64_t run(struct pf_mt *mt, int32_t pid, const uint64_t *from, const uint64_t *to)
{
	struct mt_mover mover = { .left = 0 };
	uint64_t begun = now_us();
	uint64_t left[PF_NODE_WORDS];
	bool shared = may_move_all();
	struct pair pair;
	int64_t busy = 0;

	memcpy(left, from, sizeof(left));
	while (next_pair(from, to, left, &pair)) {
		int64_t result;

		if (move_pair(&mover, mt, pid, pair, shared))
			continue;
		result = kernel_pair(pid, pair);
		if (result < 0) {
			busy = result;
			break;
		}
		busy += result;
	}
	mt_count(mt, begun, mover.pages, mover.bytes, mover.workers);
	return busy;
}

/*
 * The new nodes that this process may use: the kernel maps onto those. False
 * when it cannot be told, or there are none.
 */
static bool usable(uint64_t *to)
{
	uint64_t allowed[PF_NODE_WORDS] = { 0 };
	uint64_t any = 0;
	int32_t i;

	if (pf_sys_get_mempolicy(NULL, allowed, NODES + 1, 0, 1 << 2))	/* MEMS_ALLOWED */
		return false;
	for (i = 0; i < PF_NODE_WORDS; i++)
		any |= to[i] &= allowed[i];
	return any != 0;
}

int64_t pf_mt_migrate_pages(struct pf_mt *mt, int32_t pid, uint64_t maxnode,
			    const uint64_t *from, const uint64_t *to)
{
	uint64_t old[PF_NODE_WORDS], new[PF_NODE_WORDS];

	/*
	 * Without old nodes the kernel moves nothing, but says whether it would
	 * refuse; then it is to refuse the call as it is.
	 */
	if (mt->threads > 1 && mt->threads <= PF_MAX_THREADS &&
	    !pf_sys_migrate_pages(pid, maxnode, NULL, to) && read_mask(old, from, maxnode) &&
	    read_mask(new, to, maxnode) && weight(old) && usable(new))
		return run(mt, pid, old, new);
	return mt_passed(mt, pf_sys_migrate_pages(pid, maxnode, from, to));
}
