// SPDX-License-Identifier: Apache-2.0
/*
 * Memory that a device may write into: an io_uring fixed buffer, whose pages
 * are pinned for good, and O_DIRECT reads, which pin them while they last.
 * Checked hold leaves pinned pages where they are, and every byte that is read
 * into the range is found in it.
 * Usage: user_pins [FILE], a file that can be made on a disk; by default in TMPDIR.
 */
#include <errno.h>
#include <linux/io_uring.h>
#include <pthread.h>
#include <stdatomic.h>
#include <sys/syscall.h>
#include <sys/uio.h>

#include "user_memory.h"

enum { BYTES = 8 << 20, BUFFER = 64 << 10, READS = 300 };

static int nodes[2];
static int n_nodes;
static struct pf_extent left[MAX_LEFT];

/* ---- The least of an io_uring: one request at a time ------------------------------ */

struct ring {
	int fd;
	struct io_uring_params params;
	char *sq;
	char *cq;
	struct io_uring_sqe *sqes;
};

static bool ring_open(struct ring *ring)
{
	size_t sq_bytes, cq_bytes;

	memset(ring, 0, sizeof(*ring));
	ring->fd = (int)syscall(SYS_io_uring_setup, 4u, &ring->params);
	if (ring->fd < 0)
		return false;	/* kernel.io_uring_disabled, or seccomp */
	sq_bytes = ring->params.sq_off.array + ring->params.sq_entries * sizeof(unsigned int);
	cq_bytes = ring->params.cq_off.cqes +
		   ring->params.cq_entries * sizeof(struct io_uring_cqe);
	ring->sq = mmap(NULL, sq_bytes, PROT_READ | PROT_WRITE, MAP_SHARED, ring->fd,
			IORING_OFF_SQ_RING);
	ring->cq = mmap(NULL, cq_bytes, PROT_READ | PROT_WRITE, MAP_SHARED, ring->fd,
			IORING_OFF_CQ_RING);
	ring->sqes = mmap(NULL, ring->params.sq_entries * sizeof(*ring->sqes),
			  PROT_READ | PROT_WRITE, MAP_SHARED, ring->fd, IORING_OFF_SQES);
	CHECK(ring->sq != MAP_FAILED && ring->cq != MAP_FAILED && ring->sqes != MAP_FAILED);
	return true;
}

/* Read into the fixed buffer; what the request returned. */
static int ring_read(struct ring *ring, int fd, void *to, unsigned int bytes, uint64_t from)
{
	unsigned int *tail = (unsigned int *)(void *)(ring->sq + ring->params.sq_off.tail);
	unsigned int *array = (unsigned int *)(void *)(ring->sq + ring->params.sq_off.array);
	unsigned int *head = (unsigned int *)(void *)(ring->cq + ring->params.cq_off.head);
	struct io_uring_cqe *cqes = (struct io_uring_cqe *)(void *)(ring->cq +
								   ring->params.cq_off.cqes);
	unsigned int mask = ring->params.sq_entries - 1;
	int result;

	ring->sqes[*tail & mask] = (struct io_uring_sqe){
		.opcode = IORING_OP_READ_FIXED, .fd = fd, .addr = (uintptr_t)to,
		.len = bytes, .off = from,
	};
	array[*tail & mask] = *tail & mask;
	__atomic_store_n(tail, *tail + 1, __ATOMIC_RELEASE);
	CHECK(syscall(SYS_io_uring_enter, ring->fd, 1u, 1u, (unsigned int)IORING_ENTER_GETEVENTS,
		      NULL, 0ul) == 1);
	result = cqes[*head & (ring->params.cq_entries - 1)].res;
	__atomic_store_n(head, *head + 1, __ATOMIC_RELEASE);
	return result;
}

/* ---- What is read: a file whose bytes are known ------------------------------------ */

static int file_new(const char *path, int flags)
{
	int fd = open(path, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
	unsigned char *bytes = memory_new(BYTES, false);
	size_t done = 0;
	int again;

	CHECK(fd >= 0);
	fill(bytes, BYTES, 7);
	while (done < BYTES) {
		ssize_t count = write(fd, bytes + done, BYTES - done);

		CHECK(count > 0);
		done += (size_t)count;
	}
	CHECK(!fsync(fd));
	again = open(path, O_RDONLY | O_CLOEXEC | flags);
	close(fd);
	CHECK(!unlink(path));
	CHECK(!munmap(bytes, BYTES));
	return again;
}

static void check_buffer(const unsigned char *memory, size_t from, size_t bytes, unsigned int seed)
{
	for (size_t k = from; k < from + bytes; k++)
		CHECK(memory[k] == byte_at(k, seed));
}

static void fixed_buffer(bool huge, const char *path)
{
	unsigned char *memory = memory_new(BYTES, huge);
	struct pf_extent extent = extent_of(memory, BYTES, huge);
	size_t at = 3 * (1 << 20);
	struct iovec buffer = { .iov_base = memory + at, .iov_len = BUFFER };
	uint64_t pinned = huge ? HUGE : BUFFER;
	struct ring ring;
	int fd = file_new(path, 0);

	CHECK(fd >= 0);
	if (!ring_open(&ring)) {
		printf("fixed buffer: no io_uring here (%s)\n", strerror(errno));
		close(fd);
		return;
	}
	fill(memory, BYTES, 1);
	CHECK(!syscall(SYS_io_uring_register, ring.fd, IORING_REGISTER_BUFFERS, &buffer, 1u));
	for (unsigned int round = 0; round < 6; round++) {
		struct pf_user call = user_call(nodes[round % (unsigned int)n_nodes],
						PF_USER_CHECKED, 1 + round % 2, &extent, 1, left);
		uint64_t listed = 0;

		CHECK(pf_user_run(&call) == 0);
		CHECK(call.progress.left[EBUSY] == pinned);
		CHECK(call.progress.bytes_left == pinned);
		CHECK(call.progress.bytes_moved == BYTES - pinned);
		for (uint64_t i = 0; i < call.n_left; i++) {
			CHECK(left[i].start >= (uintptr_t)memory + at / pinned * pinned);
			listed += left[i].pages << left[i].shift;
		}
		CHECK(listed == pinned);
		/* The buffer is still the memory: what comes in by the one is in the other. */
		CHECK(ring_read(&ring, fd, memory + at, BUFFER, at) == BUFFER);
		check_buffer(memory, at, BUFFER, 7);
		check_buffer(memory, 0, at, 1);
		check_buffer(memory, at + BUFFER, BYTES - at - BUFFER, 1);
		for (size_t k = at; k < at + BUFFER; k++)
			memory[k] = byte_at(k, 1);
	}
	close(ring.fd);
	close(fd);
	CHECK(!munmap(memory, BYTES));
	printf("fixed buffer, huge %d: ok\n", huge);
}

struct reader {
	int fd;
	unsigned char *memory;
	atomic_bool done;
};

static void *read_on(void *arg)
{
	struct reader *reader = arg;

	for (size_t i = 0; i < READS; i++) {
		size_t at = i * 37 * BUFFER % (BYTES - BUFFER) / PAGE * PAGE;

		memset(reader->memory + at, 0, BUFFER);
		CHECK(pread(reader->fd, reader->memory + at, BUFFER, (off_t)at) == BUFFER);
		check_buffer(reader->memory, at, BUFFER, 7);
	}
	atomic_store(&reader->done, true);
	return NULL;
}

static void direct_reads(bool huge, const char *path)
{
	struct reader reader = { .fd = file_new(path, O_DIRECT) };
	uint64_t moves = 0, moved = 0, busy = 0;
	struct pf_extent extent;
	pthread_t thread;

	if (reader.fd < 0) {
		printf("direct reads: not on the file system of %s (%s)\n", path, strerror(errno));
		return;
	}
	reader.memory = memory_new(BYTES, huge);
	extent = extent_of(reader.memory, BYTES, huge);
	fill(reader.memory, BYTES, 7);
	CHECK(!pthread_create(&thread, NULL, read_on, &reader));
	do {	/* once at least, however late this thread goes on */
		struct pf_user call = user_call(nodes[moves++ % (unsigned int)n_nodes],
						PF_USER_CHECKED, 2, &extent, 1, left);

		call.piece_bytes = 64u << 10 << moves % 7;
		CHECK(pf_user_run(&call) == 0);
		moved += call.progress.bytes_moved;
		busy += call.progress.left[EBUSY];
	} while (!atomic_load(&reader.done));
	pthread_join(thread, NULL);
	check_fill(reader.memory, BYTES, 7);
	CHECK(moved > 0);
	close(reader.fd);
	CHECK(!munmap(reader.memory, BYTES));
	printf("direct reads, huge %d: ok, %" PRIu64 " moves, %" PRIu64 " KiB were pinned\n", huge,
	       moves, busy >> 10);
}

int main(int argc, char **argv)
{
	bool thp = access("/sys/kernel/mm/transparent_hugepage/hpage_pmd_size", F_OK) == 0;
	const char *folder = getenv("TMPDIR");
	char path[512];

	setvbuf(stdout, NULL, _IOLBF, 0);
	alarm(600 * SLOWER);
	n_nodes = memory_nodes(nodes, 2);
	snprintf(path, sizeof(path), "%s/pageferry-pins-%d", folder ? folder : "/tmp", getpid());
	for (int huge = 0; huge <= thp; huge++) {
		if (!way_works(PF_USER_CHECKED, huge)) {
			puts("checked hold: not on this kernel");
			continue;
		}
		fixed_buffer(huge, argc > 1 ? argv[1] : path);
		direct_reads(huge, argc > 1 ? argv[1] : path);
	}
	pf_crew_stop();
	printf("user pins: ok, %d nodes\n", n_nodes);
	return 0;
}
