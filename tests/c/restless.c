// SPDX-License-Identifier: Apache-2.0
/*
 * A process that does not hold still while its memory moves: it writes, empties,
 * protects, locks, unmaps, remaps and collapses parts of it, lets its stack
 * grow, forks, starts programs, becomes another program, and ends in the middle
 * of a move. A record of what each page must hold says after each step whether
 * it does.
 *
 * Usage: restless [SEED [STEPS [own|outside]]], by default with seed 1. own: threads of this process move
 * the memory, by the user engine and the kernel's; outside: somebody else does. A
 * seed stands for one order of steps; what the moves are at meanwhile differs.
 */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <pthread.h>
#include <signal.h>
#include <spawn.h>
#include <stdatomic.h>
#include <sys/wait.h>

#include "user_memory.h"

#ifndef MADV_COLLAPSE
#define MADV_COLLAPSE 25	/* Linux 6.1 */
#endif

enum {
	SLOTS = 4,
	PAGES = 1024,		/* of a slot */
	WORDS = 512,		/* of a page */
	WINDOWS = 4096,		/* places for slots: none is used again soon */
	HOLE_STEPS = 16,	/* a hole is mapped again after so many at the earliest */
	MOST = 64,		/* pages that one step is about */
	MOVERS = 2,
	EXTENTS = 1024,
	FRAME = 16 << 10,	/* of the stack that grows */
	DEEPEST = 60,
};

#define SLOT_BYTES ((size_t)PAGES * PAGE)
#define WINDOW_BYTES (SLOT_BYTES + HUGE)	/* with room, so that slots do not merge */

enum access { WRITABLE, READABLE, CLOSED, HOLE };

struct slot {
	unsigned char *start;		/* NULL: not mapped */
	uint64_t stamp[PAGES];		/* what a page holds; 0: nothing */
	unsigned char access[PAGES];
	unsigned long hole_since[PAGES];
};

static struct slot slots[SLOTS];
static pthread_mutex_t places = PTHREAD_MUTEX_INITIALIZER;	/* of slots[].start */
static unsigned char *windows;
static unsigned int next_window;
static uint64_t seed, state, stamps;
static unsigned long step, steps;
static bool own;
static int nodes[2], n_nodes;
static atomic_bool ending;
static atomic_ullong moved[MOVERS];
static pthread_t movers[MOVERS];

#define MUST(condition)                                                                    \
	do {                                                                               \
		if (!(condition)) {                                                        \
			fprintf(stderr, "seed %" PRIu64 ", step %lu, line %d: not true: %s, %s\n", \
				seed, step, __LINE__, #condition, strerror(errno));        \
			_exit(1);                                                          \
		}                                                                          \
	} while (0)

/* splitmix64 */
static uint64_t mix(uint64_t x)
{
	x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9u;
	x = (x ^ x >> 27) * 0x94d049bb133111ebu;
	return x ^ x >> 31;
}

static unsigned int any(unsigned int below)
{
	state += 0x9e3779b97f4a7c15u;
	return (unsigned int)(mix(state) % below);
}

/* ---- What pages hold ------------------------------------------------------------------- */

static uint64_t word_of(uint64_t stamp, size_t i)
{
	return stamp ? stamp * 0x9e3779b97f4a7c15u + i * 0xff51afd7ed558ccdu : 0;
}

static void write_page(struct slot *slot, size_t page)
{
	uint64_t *words = (uint64_t *)(slot->start + page * PAGE);

	slot->stamp[page] = ++stamps;
	for (size_t i = 0; i < WORDS; i++)
		words[i] = word_of(stamps, i);
}

static void check_page(const struct slot *slot, size_t page)
{
	const uint64_t *words = (const uint64_t *)(slot->start + page * PAGE);

	if (slot->access[page] > READABLE)
		return;
	for (size_t i = 0; i < WORDS; i++) {
		if (words[i] == word_of(slot->stamp[page], i))
			continue;
		fprintf(stderr, "seed %" PRIu64 ", step %lu: slot %zu, page %zu, word %zu is %#"
			PRIx64 ", not %#" PRIx64 "\n", seed, step, (size_t)(slot - slots), page, i,
			words[i], word_of(slot->stamp[page], i));
		_exit(1);
	}
}

static void check_slot(const struct slot *slot)
{
	for (size_t page = 0; slot->start && page < PAGES; page++)
		check_page(slot, page);
}

static void check_all(void)
{
	for (int i = 0; i < SLOTS; i++)
		check_slot(&slots[i]);
}

static void *check_in_thread(void *arg)
{
	check_slot(arg);
	return NULL;
}

/* ---- What happens to them -------------------------------------------------------------------- */

static unsigned char *new_window(void)
{
	return windows + (size_t)(next_window++ % WINDOWS) * WINDOW_BYTES;
}

static void map_slot(struct slot *slot)
{
	unsigned char *start = new_window();

	MUST(mmap(start, SLOT_BYTES, PROT_READ | PROT_WRITE,
		  MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0) == start);
	madvise(start, SLOT_BYTES, any(2) ? MADV_HUGEPAGE : MADV_NOHUGEPAGE);
	memset(slot->stamp, 0, sizeof(slot->stamp));
	memset(slot->access, WRITABLE, sizeof(slot->access));
	pthread_mutex_lock(&places);
	slot->start = start;
	pthread_mutex_unlock(&places);
}

static void unmap_slot(struct slot *slot)
{
	unsigned char *start = slot->start;

	pthread_mutex_lock(&places);
	slot->start = NULL;
	pthread_mutex_unlock(&places);
	MUST(!munmap(start, SLOT_BYTES));
}

/* Whole where it is one mapping, page by page where it is not, or partly gone already. */
static void remap_slot(struct slot *slot)
{
	unsigned char *from = slot->start, *to = new_window();
	unsigned char there;

	if (mremap(from, SLOT_BYTES, SLOT_BYTES, MREMAP_MAYMOVE | MREMAP_FIXED, to) == MAP_FAILED)
		for (size_t page = 0; page < PAGES; page++) {
			size_t at = page * PAGE;

			if (slot->access[page] == HOLE || mincore(from + at, PAGE, &there))
				continue;
			MUST(mremap(from + at, PAGE, PAGE, MREMAP_MAYMOVE | MREMAP_FIXED,
				    to + at) == to + at);
		}
	pthread_mutex_lock(&places);
	slot->start = to;
	pthread_mutex_unlock(&places);
}

static void protect(struct slot *slot, size_t page, size_t count, enum access access)
{
	static const int protections[] = { PROT_READ | PROT_WRITE, PROT_READ, PROT_NONE };

	for (size_t i = page; i < page + count; i++) {
		if (slot->access[i] == HOLE)
			return;
		slot->access[i] = (unsigned char)access;
		MUST(!mprotect(slot->start + i * PAGE, PAGE, protections[access]));
	}
}

static void punch(struct slot *slot, size_t page, size_t count)
{
	MUST(!munmap(slot->start + page * PAGE, count * PAGE));
	for (size_t i = page; i < page + count; i++) {
		slot->access[i] = HOLE;
		slot->stamp[i] = 0;
		slot->hole_since[i] = step;
	}
}

static void mend(struct slot *slot, bool at_once)
{
	for (size_t i = 0; i < PAGES; i++) {
		unsigned char *at = slot->start + i * PAGE;

		if (slot->access[i] != HOLE || (!at_once && step - slot->hole_since[i] < HOLE_STEPS))
			continue;
		MUST(mmap(at, PAGE, PROT_READ | PROT_WRITE,
			  MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0) == at);
		slot->access[i] = WRITABLE;
	}
}

/* A page goes over another one, which is lost; in its own place there is nothing then. */
static void page_over_page(struct slot *from, size_t page, struct slot *to, size_t target)
{
	if (from == to || !to->start || from->access[page] != WRITABLE ||
	    to->access[target] != WRITABLE)
		return;
	MUST(mremap(from->start + page * PAGE, PAGE, PAGE,
		    MREMAP_MAYMOVE | MREMAP_FIXED | MREMAP_DONTUNMAP,
		    to->start + target * PAGE) == to->start + target * PAGE);
	to->stamp[target] = from->stamp[page];
	from->stamp[page] = 0;
	check_page(to, target);
	check_page(from, page);
}

static void empty(struct slot *slot, size_t page, size_t count)
{
	for (size_t i = page; i < page + count; i++)
		if (slot->access[i] == HOLE)
			return;
	if (madvise(slot->start + page * PAGE, count * PAGE, MADV_DONTNEED))
		return;		/* a part of it is locked */
	for (size_t i = page; i < page + count; i++) {
		slot->stamp[i] = 0;
		check_page(slot, i);
	}
}

/* Locked memory is unlocked before anybody else looks at it. */
static void lock(struct slot *slot, size_t page, size_t count)
{
	unsigned char *start = slot->start + page * PAGE;

	mlock(start, count * PAGE);
	for (size_t i = page; i < page + count; i++)
		check_page(slot, i);
	munlock(start, count * PAGE);
}

/* The kernel does to pages what it would some time later by itself. */
static void advise(struct slot *slot, size_t page, size_t count)
{
	static const int advices[] = { MADV_COLD, MADV_PAGEOUT, MADV_HUGEPAGE, MADV_NOHUGEPAGE };
	unsigned int which = any(5);

	if (which == 4)		/* from base pages to a huge one */
		madvise(slot->start + page * PAGE / HUGE * HUGE, HUGE, MADV_COLLAPSE);
	else
		madvise(slot->start + page * PAGE, count * PAGE, advices[which]);
}

static void end_child(pid_t child)
{
	int status;

	MUST(child > 0 && waitpid(child, &status, 0) == child);
	MUST(WIFEXITED(status) && !WEXITSTATUS(status));
}

static void fork_and_check(void)
{
	pid_t child = fork();

	if (!child) {
		check_all();
		_exit(0);
	}
	/* Written while both have it. */
	for (int i = 0; i < SLOTS; i++)
		if (slots[i].start && slots[i].access[0] == WRITABLE)
			write_page(&slots[i], 0);
	end_child(child);
}

static void start_program(void)
{
	char *const words[] = { "true", NULL };
	pid_t child;

	MUST(!posix_spawn(&child, "/bin/true", NULL, NULL, words, NULL));
	end_child(child);
}

static uint64_t grow_stack(unsigned int depth)
{
	volatile uint64_t frame[FRAME / 8];
	uint64_t below = 0;

	for (size_t i = 0; i < FRAME / 8; i += WORDS / 4)
		frame[i] = word_of(depth + 1, i);
	if (depth)
		below = grow_stack(depth - 1);
	for (size_t i = 0; i < FRAME / 8; i += WORDS / 4)
		MUST(frame[i] == word_of(depth + 1, i));
	return below + 1;
}

static void one_step(void)
{
	struct slot *slot = &slots[any(SLOTS)];
	size_t count = 1 + any(MOST), page = any(PAGES - MOST);
	unsigned int what = any(100);
	pthread_t thread;

	if (!slot->start) {
		map_slot(slot);
		return;
	}
	if (what < 30) {
		for (size_t i = page; i < page + count; i++)
			if (slot->access[i] == WRITABLE)
				write_page(slot, i);
	} else if (what < 45) {
		for (size_t i = page; i < page + count; i++)
			check_page(slot, i);
	} else if (what < 52) {
		empty(slot, page, count);
	} else if (what < 60) {
		protect(slot, page, count, (enum access)any(3));
	} else if (what < 63) {
		for (size_t i = 0; i < PAGES; i++)
			protect(slot, i, 1, WRITABLE);
	} else if (what < 68) {
		page_over_page(slot, page, &slots[any(SLOTS)], any(PAGES));
	} else if (what < 70) {
		remap_slot(slot);
	} else if (what < 72) {
		unmap_slot(slot);
	} else if (what < 76) {
		punch(slot, page, count);
	} else if (what < 80) {
		mend(slot, false);
	} else if (what < 85) {
		lock(slot, page, count);
	} else if (what < 92) {
		advise(slot, page, count);
	} else if (what < 94) {
		fork_and_check();
	} else if (what < 95) {
		start_program();
	} else if (what < 98) {
		MUST(!pthread_create(&thread, NULL, check_in_thread, slot));
		MUST(!pthread_join(thread, NULL));
	} else {
		unsigned int depth = any(DEEPEST);

		MUST(grow_stack(depth) == depth + 1);
	}
}

/* Somebody has to say what there was at that address. */
static void on_fault(int number, siginfo_t *info, void *context)
{
	uintptr_t at = (uintptr_t)info->si_addr;
	FILE *file = fopen("/proc/self/maps", "r");
	char line[512];
	uint64_t from, to;

	(void)context;
	fprintf(stderr, "seed %" PRIu64 ", step %lu: signal %d, code %d at %#" PRIxPTR
		", %s thread\n", seed, step, number, info->si_code, at,
		getpid() == gettid() ? "first" : "another");
	for (int i = 0; i < SLOTS; i++) {
		size_t page = (at - (uintptr_t)slots[i].start) / PAGE;

		fprintf(stderr, "slot %d is at %p\n", i, (void *)slots[i].start);
		if (slots[i].start && page < PAGES)
			fprintf(stderr, "there: slot %d, page %zu, access %d, stamp %" PRIu64 "\n", i,
				page, slots[i].access[page], slots[i].stamp[page]);
	}
	while (file && fgets(line, sizeof(line), file))
		if (sscanf(line, "%" SCNx64 "-%" SCNx64, &from, &to) == 2 && to + HUGE > at &&
		    from < at + HUGE)
			fputs(line, stderr);
	_exit(1);
}

/* ---- Who moves it -------------------------------------------------------------------------------- */

static uint64_t survey(int slot, struct pf_extent *extents)
{
	struct pf_survey request = {
		.kpageflags_fd = -1,
		.method = PF_SURVEY_SCAN,
		.flags = PF_SURVEY_TOUCHED,
		.huge_shift = 21,
		.huge_kind = PF_PAGE_THP,
	};
	int64_t count;

	pthread_mutex_lock(&places);
	request.start = (uintptr_t)slots[slot].start;
	pthread_mutex_unlock(&places);
	if (!request.start)
		return 0;
	request.end = request.start + SLOT_BYTES;
	request.pagemap_fd = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC);
	MUST(request.pagemap_fd >= 0);
	count = pf_survey_next(&request, extents, EXTENTS);
	close(request.pagemap_fd);
	MUST(count >= 0 || count == -ENOTTY);
	return count < 0 ? 0 : (uint64_t)count;
}

static uint64_t by_user_engine(int node, unsigned int round, const struct pf_extent *extents,
			       uint64_t count)
{
	static _Thread_local struct pf_extent left[MAX_LEFT];
	struct pf_user call = user_call(node, PF_USER_CHECKED, 1 + round % 2, extents, count, left);

	call.piece_bytes = 64u << 10 << round % 7;
	call.flags |= round % 3 ? 0 : PF_USER_NO_FILL;
	MUST(pf_user_run(&call) == 0);
	return call.progress.bytes_moved;
}

static uint64_t by_kernel_engine(int node, unsigned int round, const struct pf_extent *extents,
				 uint64_t count)
{
	struct pf_move move = {
		.target = node,
		.flags = PF_MOVE_EXACT,
		.blocking = PF_SYNC,
		.threads = 1 + round % 2,
		.extents = extents,
		.n_extents = count,
	};

	MUST(pf_move_run(&move) == 0);
	return move.progress.bytes_moved + move.progress.bytes_already;
}

static void *move_on(void *arg)
{
	static _Thread_local struct pf_extent extents[EXTENTS];
	unsigned int number = (unsigned int)(uintptr_t)arg, round = 0;

	while (!atomic_load(&ending)) {
		int node = nodes[round / SLOTS % (unsigned int)n_nodes];
		uint64_t count = survey((int)(round % SLOTS), extents);
		bool by_user = number == 0 && way_works(PF_USER_CHECKED, true);

		if (count)
			atomic_fetch_add(&moved[number],
					 by_user ? by_user_engine(node, round, extents, count)
						 : by_kernel_engine(node, round, extents, count));
		round++;
	}
	return NULL;
}

static void begin(void)
{
	size_t bytes = (size_t)WINDOWS * WINDOW_BYTES;
	struct sigaction action = { .sa_sigaction = on_fault, .sa_flags = SA_SIGINFO | SA_RESETHAND };

	MUST(!sigaction(SIGSEGV, &action, NULL) && !sigaction(SIGBUS, &action, NULL));
	windows = mmap(NULL, bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	MUST(windows != MAP_FAILED);
	MUST(!munmap(windows, bytes));
	windows += HUGE - (uintptr_t)windows % HUGE;
	for (int i = 0; i < SLOTS; i++) {
		map_slot(&slots[i]);
		for (size_t page = 0; page < PAGES; page++)
			write_page(&slots[i], page);
	}
	for (uintptr_t i = 0; own && i < MOVERS; i++)
		MUST(!pthread_create(&movers[i], NULL, move_on, (void *)i));
}

/* Both movers have moved something, or there is nobody here who does. */
static bool has_moved(void)
{
	for (int i = 0; own && i < MOVERS; i++)
		if (!atomic_load(&moved[i]))
			return false;
	return true;
}

/* The memory of this program goes in the middle of whatever moves it. */
static void become_another(char **words)
{
	char seed_text[24], steps_text[24];

	snprintf(seed_text, sizeof(seed_text), "%" PRIu64, seed);
	snprintf(steps_text, sizeof(steps_text), "-%lu", steps / 3);
	execl("/proc/self/exe", words[0], seed_text, steps_text, own ? "own" : "outside", NULL);
	MUST(!"execl");
}

/* STEPS below 0: the last program of these. */
int main(int argc, char **argv)
{
	long wanted = argc > 2 ? atol(argv[2]) : 1500 / SLOWER;

	seed = argc > 1 ? strtoull(argv[1], NULL, 10) : 1;
	steps = (unsigned long)labs(wanted);
	own = argc <= 3 || !strcmp(argv[3], "own");
	state = seed + (wanted < 0);
	setvbuf(stdout, NULL, _IOLBF, 0);
	alarm((unsigned int)(600 + steps / 20) * SLOWER);
	n_nodes = memory_nodes(nodes, 2);
	if (wanted >= 0)
		printf("seed %" PRIu64 "\n", seed);
	begin();
	for (step = 0; step < steps || !has_moved(); step++) {
		one_step();
		if (step % 256 == 255)
			check_all();
	}
	for (int i = 0; i < SLOTS; i++)
		for (size_t page = 0; slots[i].start && page < PAGES; page++)
			protect(&slots[i], page, 1, WRITABLE);
	check_all();
	if (wanted >= 0)
		become_another(argv);
	printf("restless: ok, seed %" PRIu64 ", %d nodes\n", seed, n_nodes);
	_exit(0);	/* with the movers at it */
}
