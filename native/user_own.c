// SPDX-License-Identifier: Apache-2.0
/*
 * What the engine must not do to itself, and to a child.
 *
 * A worker that holds a piece touches its stack, its thread-local memory, the
 * lane, and the variables of the core and of the C library. If these were in a
 * piece, its own or that of a worker whose memory is in turn in this one's,
 * both would wait forever. So workers are entered in a table before they take
 * anything, and what the table has is in no piece. The table is not locked: a
 * worker whose entry came too late to be seen blocks on its own stack while it
 * holds nothing, until that piece is done.
 */
#include <errno.h>
#include <link.h>
#include <pthread.h>

#include "signals.h"
#include "user_engine.h"

enum {
	SLOTS = 1024,
	STACK_BELOW = 128 << 10,	/* more than the engine uses */
	STACK_ABOVE = 64 << 10,	/* frames are large with sanitizers */
	THREAD_BELOW = 16 << 10,	/* of thread-local variables, below the thread itself */
	THREAD_ABOVE = 2304,		/* the thread's own descriptor; up to a whole page */
	PAGE_MASK = 4095,
};

enum { FREE = 0, TAKEN = 1 };	/* values of stack that are none */

static struct slot {
	uint64_t stack;
	uint64_t stack_end;
	uint64_t thread;
	uint64_t thread_end;
	struct lane *lane;
	uint64_t block;		/* the lane's; copied, as the lane may be gone when others look */
	uint64_t block_bytes;
} slots[SLOTS];
static uint32_t slots_used;	/* never shrinks */

static pthread_rwlock_t pieces;
static sigset_t fork_before;	/* the signals of a thread that forks */

static void lock_init(void)
{
	pthread_rwlockattr_t attr;

	pthread_rwlockattr_init(&attr);
	/* A fork must get its turn while piece follows piece. */
	pthread_rwlockattr_setkind_np(&attr, PTHREAD_RWLOCK_PREFER_WRITER_NONRECURSIVE_NP);
	pthread_rwlock_init(&pieces, &attr);
	pthread_rwlockattr_destroy(&attr);
}

static void fork_prepare(void)
{
	sigset_t before;

	/* A handler that moves memory would wait for the thread that it has interrupted. */
	signals_block(&before);
	pthread_rwlock_wrlock(&pieces);
	fork_before = before;
}

static void fork_parent(void)
{
	sigset_t before = fork_before;

	pthread_rwlock_unlock(&pieces);
	signals_restore(&before);
}

/* The workers are not there, and the watches are the parent's: they end with the last copy. */
static void fork_child(void)
{
	uint32_t i;

	lock_init();
	for (i = 0; i < slots_used; i++) {
		if (slots[i].stack > TAKEN)
			lane_close(slots[i].lane);
		slots[i].stack = FREE;
	}
	signals_restore(&fork_before);
}

/* When the library is loaded: a fork that is under way by the first move would not wait. */
__attribute__((constructor)) static void init(void)
{
	lock_init();
	pthread_atfork(fork_prepare, fork_parent, fork_child);
}

void engine_enter(sigset_t *before)
{
	signals_block(before);
	pthread_rwlock_rdlock(&pieces);
}

void engine_exit(const sigset_t *before)
{
	pthread_rwlock_unlock(&pieces);
	signals_restore(before);
}

static int take_slot(struct lane *lane)
{
	uint64_t stack = (uintptr_t)__builtin_frame_address(0);
	uint64_t thread = (uint64_t)pthread_self();
	uint64_t thread_end = (thread + THREAD_ABOVE + PAGE_MASK) & ~(uint64_t)PAGE_MASK;
	uint64_t stack_end = stack + STACK_ABOVE;
	uint32_t i, used;

	/* But for the first thread the descriptor ends the stack; then comes other memory. */
	if (stack < thread && stack_end > thread_end)
		stack_end = thread_end;
	for (i = 0; i < SLOTS; i++) {
		uint64_t none = FREE;

		if (!__atomic_compare_exchange_n(&slots[i].stack, &none, TAKEN, false,
						 __ATOMIC_ACQ_REL, __ATOMIC_RELAXED))
			continue;
		lane->watch = lane->side_watch = lane->maps = -1;
		lane->slot = i;
		/* Whoever looks at a slot that changes hands sees words of either, never half ones. */
		__atomic_store_n(&slots[i].thread, thread, __ATOMIC_RELAXED);
		__atomic_store_n(&slots[i].thread_end, thread_end, __ATOMIC_RELAXED);
		__atomic_store_n(&slots[i].stack_end, stack_end, __ATOMIC_RELAXED);
		slots[i].lane = lane;
		__atomic_store_n(&slots[i].block, lane->block, __ATOMIC_RELAXED);
		__atomic_store_n(&slots[i].block_bytes, lane->block_bytes, __ATOMIC_RELAXED);
		__atomic_store_n(&slots[i].stack, stack, __ATOMIC_RELEASE);
		used = __atomic_load_n(&slots_used, __ATOMIC_RELAXED);
		while (used <= i &&
		       !__atomic_compare_exchange_n(&slots_used, &used, i + 1, false,
						    __ATOMIC_ACQ_REL, __ATOMIC_RELAXED))
			;
		return 0;
	}
	return -EAGAIN;
}

static void free_slot(const struct lane *lane)
{
	__atomic_store_n(&slots[lane->slot].stack, FREE, __ATOMIC_RELEASE);
}

int engine_join(struct lane *lane, uint32_t way, uint32_t features)
{
	int error = take_slot(lane);
	sigset_t before;

	if (error)
		return error;
	engine_enter(&before);	/* a child would not know of files opened meanwhile */
	error = lane_open(lane, way, features);
	engine_exit(&before);
	if (error)
		free_slot(lane);
	return error;
}

void engine_leave(struct lane *lane)
{
	sigset_t before;

	engine_enter(&before);
	lane_close(lane);
	engine_exit(&before);
	free_slot(lane);
}

static bool meets(uint64_t start, uint64_t end, uint64_t from, uint64_t to)
{
	return from < end && start < to;
}

struct search {
	uint64_t start;
	uint64_t end;
};

/* The variables of the program and its libraries: the core's and the C library's among them. */
static int look_at_object(struct dl_phdr_info *info, size_t size, void *arg)
{
	const struct search *search = arg;
	int i;

	(void)size;
	for (i = 0; i < info->dlpi_phnum; i++) {
		const ElfW(Phdr) *header = &info->dlpi_phdr[i];
		uint64_t from = info->dlpi_addr + header->p_vaddr;

		if (header->p_type == PT_LOAD && (header->p_flags & PF_W) &&
		    meets(search->start, search->end, from, from + header->p_memsz))
			return 1;
	}
	return 0;
}

bool engine_runs_on(uint64_t start, uint64_t bytes)
{
	struct search search = { .start = start, .end = start + bytes };
	uint32_t used = __atomic_load_n(&slots_used, __ATOMIC_ACQUIRE);
	uint32_t i;

	for (i = 0; i < used; i++) {
		uint64_t stack = __atomic_load_n(&slots[i].stack, __ATOMIC_ACQUIRE);
		uint64_t stack_end = __atomic_load_n(&slots[i].stack_end, __ATOMIC_RELAXED);
		uint64_t thread = __atomic_load_n(&slots[i].thread, __ATOMIC_RELAXED);
		uint64_t thread_end = __atomic_load_n(&slots[i].thread_end, __ATOMIC_RELAXED);
		uint64_t block = __atomic_load_n(&slots[i].block, __ATOMIC_RELAXED);
		uint64_t bytes_of = __atomic_load_n(&slots[i].block_bytes, __ATOMIC_RELAXED);

		if (stack <= TAKEN)
			continue;
		if (meets(search.start, search.end, stack - STACK_BELOW, stack_end) ||
		    meets(search.start, search.end, thread - THREAD_BELOW, thread_end) ||
		    meets(search.start, search.end, block, block + bytes_of))
			return true;
	}
	return dl_iterate_phdr(look_at_object, &search) != 0;
}
