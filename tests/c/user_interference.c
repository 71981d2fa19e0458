// SPDX-License-Identifier: Apache-2.0
/*
 * What else may happen to memory while the engine moves it: other threads fork,
 * read and write files, protect, unmap, remap and empty parts of it, signals
 * arrive, the moving thread is cancelled. Nothing hangs, and every byte is
 * where it belongs.
 * Usage: user_interference [ROUNDS], by default 16 of each.
 */
#include <errno.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <sys/wait.h>

#include "user_memory.h"

enum { BYTES = 6 << 20, PART = 1 << 20 };

static unsigned int rounds = 16 / SLOWER;

static int nodes[2];
static int n_nodes;

/* A thread that moves the memory over and over. */
struct mover {
	pthread_t thread;
	unsigned char *memory;
	uint32_t way;
	bool huge;
	atomic_bool stop;
	atomic_ulong calls;
	atomic_ullong moved;
};

/*
 * The thread may be cancelled: nothing undoes then what the address sanitizer has written around
 * its variables, and whoever uses the stack next would be blamed.
 */
__attribute__((no_sanitize("address"))) static void *move_on(void *arg)
{
	static _Thread_local struct pf_extent left[MAX_LEFT];
	struct mover *mover = arg;
	struct pf_extent extent = extent_of(mover->memory, BYTES, mover->huge);

	while (!atomic_load(&mover->stop)) {
		unsigned long number = atomic_load(&mover->calls);
		struct pf_user call = user_call(nodes[number % (unsigned int)n_nodes], mover->way,
						1 + number % 2, &extent, 1, left);

		call.piece_bytes = 64u << 10 << number % 7;
		call.flags |= number % 3 ? 0 : PF_USER_NO_FILL;
		CHECK(pf_user_run(&call) == 0);
		atomic_fetch_add(&mover->moved, call.progress.bytes_moved);
		atomic_fetch_add(&mover->calls, 1);
		pthread_testcancel();
	}
	return NULL;
}

static void mover_start(struct mover *mover, uint32_t way, bool huge, unsigned char *memory)
{
	*mover = (struct mover){ .memory = memory, .way = way, .huge = huge };
	CHECK(!pthread_create(&mover->thread, NULL, move_on, mover));
}

/* Until so many more calls of the engine have ended: then it surely was at it meanwhile. */
static void wait_calls(struct mover *mover, unsigned long more)
{
	unsigned long until = atomic_load(&mover->calls) + more;

	while (atomic_load(&mover->calls) < until)
		sched_yield();
}

static void mover_stop(struct mover *mover)
{
	wait_calls(mover, 1);
	atomic_store(&mover->stop, true);
	pthread_join(mover->thread, NULL);
	CHECK(atomic_load(&mover->moved) > 0);
}

static void forks(uint32_t way, bool huge)
{
	unsigned char *memory = memory_new(BYTES, huge);
	struct mover mover;

	fill(memory, BYTES, 1);
	mover_start(&mover, way, huge, memory);
	for (unsigned int i = 0; i < rounds; i++) {
		pid_t child = fork();
		int status;

		CHECK(child >= 0);
		if (!child) {
			check_fill(memory, BYTES, i + 1);
			_exit(0);
		}
		/* New bytes make the pages the parent's own again, one by one. */
		fill(memory, BYTES, i + 2);
		CHECK(waitpid(child, &status, 0) == child);
		CHECK(WIFEXITED(status) && !WEXITSTATUS(status));
		check_fill(memory, BYTES, i + 2);
	}
	mover_stop(&mover);
	check_fill(memory, BYTES, rounds + 1);
	CHECK(!munmap(memory, BYTES));
}

struct sender {
	int fd;
	const unsigned char *bytes;
	bool socket;
};

static void *send_on(void *arg)
{
	struct sender *sender = arg;
	size_t sent = 0;

	while (sent < BYTES) {
		ssize_t count = sender->socket
					? send(sender->fd, sender->bytes + sent, BYTES - sent, 0)
					: write(sender->fd, sender->bytes + sent, BYTES - sent);

		CHECK(count > 0);
		sent += (size_t)count;
	}
	return NULL;
}

/* The kernel reads from memory that moves and writes into memory that moves. */
static void kernel_copies(uint32_t way, bool huge, bool sockets)
{
	unsigned char *from = memory_new(BYTES, huge), *to = memory_new(BYTES, huge);
	struct mover movers[2];

	fill(from, BYTES, 2);
	memset(to, 0xff, BYTES);
	mover_start(&movers[0], way, huge, from);
	mover_start(&movers[1], way, huge, to);
	for (unsigned int i = 0; i < rounds / 2; i++) {
		struct sender sender = { .bytes = from, .socket = sockets };
		pthread_t thread;
		size_t got = 0;
		int fds[2];

		CHECK(!(sockets ? socketpair(AF_UNIX, SOCK_STREAM, 0, fds) : pipe(fds)));
		sender.fd = fds[1];
		CHECK(!pthread_create(&thread, NULL, send_on, &sender));
		while (got < BYTES) {
			ssize_t count = sockets ? recv(fds[0], to + got, BYTES - got, 0)
						: read(fds[0], to + got, BYTES - got);

			CHECK(count > 0);
			got += (size_t)count;
		}
		pthread_join(thread, NULL);
		check_fill(to, BYTES, 2);
		memset(to, (int)i, BYTES);
		close(fds[0]);
		close(fds[1]);
	}
	mover_stop(&movers[0]);
	mover_stop(&movers[1]);
	check_fill(from, BYTES, 2);
	CHECK(!munmap(from, BYTES));
	CHECK(!munmap(to, BYTES));
}

static void protects(bool huge)
{
	unsigned char *memory = memory_new(BYTES, huge);
	struct mover mover;

	fill(memory, BYTES, 3);
	mover_start(&mover, PF_USER_CHECKED, huge, memory);
	for (size_t i = 0; i < 4 * rounds; i++) {
		unsigned char *part = memory + i * 5 * PAGE % (BYTES - PART);

		CHECK(!mprotect(part, PART, i % 2 ? PROT_NONE : PROT_READ));
		if (i % 2 == 0)
			CHECK(part[PART / 2] == byte_at((size_t)(part - memory) + PART / 2, 3));
		if (i % 8 == 0)
			wait_calls(&mover, 1);
		CHECK(!mprotect(part, PART, PROT_READ | PROT_WRITE));
		CHECK(part[PART / 3] == byte_at((size_t)(part - memory) + PART / 3, 3));
	}
	mover_stop(&mover);
	check_fill(memory, BYTES, 3);
	CHECK(!munmap(memory, BYTES));
}

static void unmaps(bool huge)
{
	for (size_t i = 0; i < rounds / 2; i++) {
		unsigned char *memory = memory_new(BYTES, huge);
		size_t cut = HUGE + i * 3 * PAGE;
		struct mover mover;

		fill(memory, BYTES, 4);
		mover_start(&mover, PF_USER_CHECKED, huge, memory);
		wait_calls(&mover, 1);
		CHECK(!munmap(memory + cut, PART));
		wait_calls(&mover, 1);
		mover_stop(&mover);
		check_fill(memory, cut, 4);
		for (size_t k = cut + PART; k < BYTES; k++)
			CHECK(memory[k] == byte_at(k, 4));
		CHECK(!munmap(memory, BYTES));
	}
}

/*
 * Memory that goes elsewhere takes its bytes along, and brings them back. Page
 * by page: mremap() refuses to work on more than one mapping, and a piece under
 * way is one.
 */
static void remaps(bool huge)
{
	unsigned char *memory = memory_new(BYTES, huge), *other = memory_new(BYTES, huge);
	struct mover mover;

	fill(memory, BYTES, 5);
	mover_start(&mover, PF_USER_CHECKED, huge, memory);
	for (size_t i = 0; i < 20 * rounds; i++) {
		size_t at = i * 37 * PAGE % BYTES;

		CHECK(mremap(memory + at, PAGE, PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, other + at) ==
		      other + at);
		for (size_t k = at; k < at + PAGE; k++)
			CHECK(other[k] == byte_at(k, 5));
		if (i % 64 == 0)
			wait_calls(&mover, 1);
		CHECK(mremap(other + at, PAGE, PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, memory + at) ==
		      memory + at);
		for (size_t k = at; k < at + PAGE; k++)
			CHECK(memory[k] == byte_at(k, 5));
	}
	/* Whatever the mappings look like now, it still moves. */
	mover_stop(&mover);
	check_fill(memory, BYTES, 5);
	CHECK(!munmap(memory, BYTES));
	CHECK(!munmap(other, BYTES));
}

/* Memory that is given up stays empty; its old bytes do not come back. */
static void empties(bool huge)
{
	unsigned char *memory = memory_new(BYTES, huge);
	struct mover mover;

	fill(memory, BYTES, 6);
	mover_start(&mover, PF_USER_CHECKED, huge, memory);
	for (size_t i = 0; i < 4 * rounds; i++) {
		size_t at = i * 5 * PAGE % (BYTES - PART);

		if (huge)
			at -= at % HUGE;
		CHECK(!madvise(memory + at, PART, MADV_DONTNEED));
		for (size_t k = at; k < at + PART; k += 64)
			CHECK(memory[k] == 0);
		for (size_t k = at; k < at + PART; k++)
			memory[k] = byte_at(k, 6);
	}
	mover_stop(&mover);
	check_fill(memory, BYTES, 6);
	CHECK(!munmap(memory, BYTES));
}

static unsigned char *handled;
static atomic_ulong signals;

static void on_signal(int number)
{
	(void)number;
	for (size_t k = 0; k < BYTES; k += PART)
		handled[k + 8]++;
	atomic_fetch_add(&signals, 1);
}

/* A handler that touches the memory, on the very thread that moves it. */
static void signalled(uint32_t way, bool huge)
{
	struct sigaction action = { .sa_handler = on_signal, .sa_flags = SA_RESTART };
	unsigned long sent = 0;
	struct mover mover;

	handled = memory_new(BYTES, huge);
	memset(handled, 0, BYTES);
	atomic_store(&signals, 0);
	CHECK(!sigaction(SIGUSR1, &action, NULL));
	mover_start(&mover, way, huge, handled);
	for (; sent < 10 * rounds; sent++) {
		CHECK(!pthread_kill(mover.thread, SIGUSR1));
		while (atomic_load(&signals) <= sent)
			sched_yield();
	}
	mover_stop(&mover);
	for (size_t k = 0; k < BYTES; k += PART)
		CHECK(handled[k + 8] == (unsigned char)sent);
	CHECK(!munmap(handled, BYTES));
}

static void *write_rounds(void *arg)
{
	struct mover *mover = arg;
	volatile uint64_t *words = (volatile uint64_t *)mover->memory;
	uint64_t round = 0;

	while (!atomic_load(&mover->stop)) {
		round++;
		for (size_t page = 0; page < BYTES / PAGE; page++) {
			CHECK(words[page * 512] == round - 1);
			words[page * 512] = round;
		}
	}
	return NULL;
}

/* Cancelled at any moment, and asked to end: the range is whole and nobody waits. */
static void cancelled(uint32_t way, bool huge)
{
	for (unsigned int i = 0; i < rounds / 2; i++) {
		unsigned char *memory = memory_new(BYTES, huge);
		struct mover mover;
		pthread_t writer;
		void *ended;

		memset(memory, 0, BYTES);
		mover_start(&mover, way, huge, memory);
		CHECK(!pthread_create(&writer, NULL, write_rounds, &mover));
		wait_calls(&mover, 1);
		CHECK(!pthread_cancel(mover.thread));
		/* Only between two calls can it be ended: then the count of them is right. */
		pthread_join(mover.thread, &ended);
		CHECK(ended == PTHREAD_CANCELED);
		atomic_store(&mover.stop, true);
		pthread_join(writer, NULL);
		CHECK(!munmap(memory, BYTES));
	}
}

/* Several calls on the same memory: the second watch is refused, and nothing is lost. */
static void together(bool huge)
{
	unsigned char *memory = memory_new(BYTES, huge);
	struct mover movers[3];

	fill(memory, BYTES, 7);
	for (int i = 0; i < 3; i++)
		mover_start(&movers[i], PF_USER_CHECKED, huge, memory);
	for (int i = 0; i < 3; i++) {
		wait_calls(&movers[i], 4);
		mover_stop(&movers[i]);
	}
	check_fill(memory, BYTES, 7);
	CHECK(!munmap(memory, BYTES));
}

int main(int argc, char **argv)
{
	bool thp = access("/sys/kernel/mm/transparent_hugepage/hpage_pmd_size", F_OK) == 0;

	setvbuf(stdout, NULL, _IOLBF, 0);
	alarm(600 * SLOWER);
	if (argc > 1)
		rounds = (unsigned int)atoi(argv[1]);
	n_nodes = memory_nodes(nodes, 2);
	for (int huge = 0; huge <= thp; huge++) {
		for (uint32_t way = PF_USER_CHECKED; way <= PF_USER_PROTECT; way++) {
			if (!way_works(way, huge))
				continue;
			forks(way, huge);
			kernel_copies(way, huge, false);
			kernel_copies(way, huge, true);
			signalled(way, huge);
			cancelled(way, huge);
			printf("way %u, huge %d: ok\n", way, huge);
		}
		if (!way_works(PF_USER_CHECKED, huge))
			continue;
		protects(huge);
		unmaps(huge);
		remaps(huge);
		empties(huge);
		together(huge);
	}
	pf_crew_stop();
	printf("user interference: ok, %d nodes\n", n_nodes);
	return 0;
}
