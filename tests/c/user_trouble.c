// SPDX-License-Identifier: Apache-2.0
/*
 * Trouble while a piece is away: no memory for as long as it lasts, no file
 * descriptor, a mapping that others change hundreds of times meanwhile. The
 * engine ends all the same, and every byte is there.
 *
 * The kernel is real, but for the calls of ioctl(2) that cannot be made to fail
 * on demand: the linker puts ours in between (--wrap=ioctl), which says that
 * there is no memory, or no UFFDIO_MOVE, or that a mapping changes just now.
 */
#include <errno.h>
#include <pthread.h>
#include <sched.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <sys/ioctl.h>
#include <sys/resource.h>

#include "user_memory.h"
#include "userfault.h"

enum { BYTES = 8 << 20, PAGES = BYTES >> 12, PART = 64 << 12 };

static struct pf_extent left[MAX_LEFT];
static int node;

static struct {
	const unsigned char *memory;	/* that is moved */
	long fills;		/* UFFDIO_COPY works so often, then there is no memory; -1: always */
	bool no_move;		/* as before Linux 6.8 */
	void (*before_put)(void);	/* called before the first page goes back in */
	atomic_bool *hold;	/* no page goes back in before this is false */
	atomic_ulong refused;
} trouble;

int __real_ioctl(int fd, unsigned long request, ...);
int __wrap_ioctl(int fd, unsigned long request, ...);

static bool in_memory(uint64_t address)
{
	return address - (uintptr_t)trouble.memory < BYTES;
}

static int refuse(int error)
{
	atomic_fetch_add(&trouble.refused, 1);
	errno = error;
	return -1;
}

int __wrap_ioctl(int fd, unsigned long request, ...)
{
	void *argument;
	va_list list;
	int result;

	va_start(list, request);
	argument = va_arg(list, void *);
	va_end(list);
	if (request == UFFDIO_COPY) {
		struct uffdio_copy *copy = argument;

		if (copy->len && !trouble.fills) {
			copy->copy = -ENOMEM;
			return refuse(ENOMEM);
		}
		if (copy->len && trouble.fills > 0) {
			trouble.fills--;
			if (copy->len > 16 * PAGE) {	/* a part of it, as it would be */
				struct uffdio_copy some = *copy;

				some.len = 16 * PAGE;
				result = __real_ioctl(fd, request, &some);
				copy->copy = some.copy;
				if (!result)
					errno = EAGAIN;
				return -1;
			}
		}
	}
	if (request == UFFDIO_MOVE) {
		struct uffdio_move *move = argument;

		if (trouble.no_move)
			return refuse(ENOTTY);
		if (in_memory(move->dst) && trouble.before_put) {
			void (*change)(void) = trouble.before_put;

			trouble.before_put = NULL;
			change();
		}
		if (in_memory(move->dst) && trouble.hold && atomic_load(trouble.hold)) {
			sched_yield();
			move->move = 0;
			return refuse(EAGAIN);
		}
	}
	result = __real_ioctl(fd, request, argument);
	if (request == UFFDIO_API && trouble.no_move)
		((struct uffdio_api *)argument)->features &= ~(uint64_t)UFFD_FEATURE_MOVE;
	return result;
}

static void no_trouble(const unsigned char *memory)
{
	memset(&trouble, 0, sizeof(trouble));
	trouble.memory = memory;
	trouble.fills = -1;
}

static struct pf_user call_on(const struct pf_extent *extent, uint32_t way)
{
	struct pf_user call = user_call(node, way, 1, extent, 1, left);

	call.piece_bytes = BYTES;
	call.flags |= PF_USER_FILL;
	return call;
}

static uint64_t listed(const struct pf_user *call)
{
	uint64_t bytes = 0;

	for (uint64_t i = 0; i < call->n_left; i++)
		bytes += call->left[i].pages << call->left[i].shift;
	return bytes;
}

/* The first pages of every piece can be filled and the next ones not: all go back. */
static void no_memory(uint32_t way, bool no_move, long fills)
{
	unsigned char *memory = memory_new(BYTES, false);
	struct pf_extent extent = extent_of(memory, BYTES, false);
	char before[512], after[512];
	struct pf_user call = call_on(&extent, way);
	int maps;

	fill(memory, BYTES, 1);
	maps = mappings_in(memory, BYTES, before, sizeof(before));
	no_trouble(memory);
	trouble.no_move = no_move;
	trouble.fills = fills;
	CHECK(pf_user_run(&call) == 0);
	CHECK(atomic_load(&trouble.refused) > 0);
	CHECK(call.progress.left[ENOMEM] == BYTES && listed(&call) == BYTES);
	CHECK(!call.progress.bytes_moved);
	no_trouble(memory);
	check_fill(memory, BYTES, 1);
	fill(memory, BYTES, 2);
	check_fill(memory, BYTES, 2);
	CHECK(mappings_in(memory, BYTES, after, sizeof(after)) == maps);
	CHECK(!strcmp(before, after));
	CHECK(!munmap(memory, BYTES));
}

static unsigned char *changing;

static void protect_parts(void)
{
	CHECK(!mprotect(changing + PART, PART, PROT_READ));
	CHECK(!mprotect(changing + 3 * PART, PART, PROT_NONE));
	CHECK(!mprotect(changing + 5 * PART, PART, PROT_READ | PROT_WRITE | PROT_EXEC));
}

static void lock_part(void)
{
	CHECK(!mlock2(changing + 3 * PART, PART, MLOCK_ONFAULT));
}

static void expect_protection(const void *address, const char *protection)
{
	FILE *file = fopen("/proc/self/maps", "r");
	char line[512], seen[8] = "";

	CHECK(file);
	while (fgets(line, sizeof(line), file)) {
		uint64_t from, to;
		char flags[8];

		if (sscanf(line, "%" SCNx64 "-%" SCNx64 " %4s", &from, &to, flags) == 3 &&
		    from <= (uintptr_t)address && (uintptr_t)address < to)
			strcpy(seen, flags);
	}
	fclose(file);
	if (strcmp(seen, protection))
		fprintf(stderr, "%p is %s, not %s\n", address, seen, protection);
	CHECK(!strcmp(seen, protection));
}

/* Where UFFDIO_MOVE is refused, and there is no page for UFFDIO_COPY. */
static void changed_and_no_memory(void (*change)(void), uint32_t flags, bool locks)
{
	unsigned char *memory = changing = memory_new(BYTES, false);
	struct pf_extent extent = extent_of(memory, BYTES, false);
	struct pf_user call = call_on(&extent, PF_USER_CHECKED);

	call.flags = PF_USER_AGAIN | flags;
	fill(memory, BYTES, 3);
	no_trouble(memory);
	trouble.fills = 0;
	trouble.before_put = change;
	CHECK(pf_user_run(&call) == 0);
	CHECK(!trouble.before_put && atomic_load(&trouble.refused) > 0);
	no_trouble(memory);
	if (!locks) {
		expect_protection(memory, "rw-p");
		expect_protection(memory + PART, "r--p");
		expect_protection(memory + 2 * PART, "rw-p");
		expect_protection(memory + 4 * PART - PAGE, "---p");
		expect_protection(memory + 5 * PART, "rwxp");
	}
	CHECK(!mprotect(memory, BYTES, PROT_READ | PROT_WRITE));
	check_fill(memory, BYTES, 3);
	CHECK(!munmap(memory, BYTES));
}

static atomic_bool emptying;

/* Every other page, one by one: each call waits until the engine has heard of it. */
static void *empty_pages(void *arg)
{
	unsigned char *memory = arg;

	for (size_t i = 0; i < PAGES; i += 2)
		CHECK(!madvise(memory + i * PAGE, PAGE, MADV_DONTNEED));
	atomic_store(&emptying, false);
	return NULL;
}

static pthread_t emptier;

static void start_emptying(void)
{
	CHECK(!pthread_create(&emptier, NULL, empty_pages, changing));
}

static void many_changes(void)
{
	unsigned char *memory = changing = memory_new(BYTES, false);
	struct pf_extent extent = extent_of(memory, BYTES, false);
	struct pf_user call = call_on(&extent, PF_USER_CHECKED);

	call.flags = PF_USER_AGAIN | PF_USER_NO_FILL;
	fill(memory, BYTES, 4);
	no_trouble(memory);
	atomic_store(&emptying, true);
	trouble.before_put = start_emptying;
	trouble.hold = &emptying;
	CHECK(pf_user_run(&call) == 0);
	CHECK(!pthread_join(emptier, NULL));
	CHECK(!trouble.before_put);
	/* Later pieces are found with so many holes that parts of them are left alone. */
	CHECK(call.progress.bytes_moved + call.progress.bytes_gone + call.progress.bytes_left ==
	      BYTES);
	CHECK(call.progress.bytes_moved >= HUGE && call.progress.bytes_gone >= HUGE);
	for (size_t i = 0; i < PAGES; i++)
		for (size_t k = i * PAGE; k < (i + 1) * PAGE; k++)
			CHECK(memory[k] == (i % 2 ? byte_at(k, 4) : 0));
	CHECK(!munmap(memory, BYTES));
}

/* So many descriptors and no more: everything is for the other engine. */
static void no_descriptors(uint32_t way, uint64_t spare)
{
	unsigned char *memory = memory_new(BYTES, false);
	struct pf_extent extents[] = {
		extent_of(memory, BYTES / 4, false),
		extent_of(memory + BYTES / 2, BYTES / 2, false),
	};
	struct rlimit limit, before;
	struct pf_user call = user_call(node, way, 2, extents, 2, left);
	int highest = dup(0);

	fill(memory, BYTES, 5);
	CHECK(highest >= 0);
	close(highest);
	CHECK(!getrlimit(RLIMIT_NOFILE, &before));
	limit = before;
	limit.rlim_cur = (rlim_t)highest + spare;
	CHECK(!setrlimit(RLIMIT_NOFILE, &limit));
	CHECK(pf_user_run(&call) == 0);
	CHECK(!setrlimit(RLIMIT_NOFILE, &before));
	CHECK(call.progress.bytes_left + call.progress.bytes_moved == BYTES / 4 * 3);
	CHECK(call.progress.left[EMFILE] == call.progress.bytes_left);
	CHECK(call.progress.left[EMFILE] > 0 && !call.progress.bytes_skipped);
	CHECK(listed(&call) == call.progress.bytes_left);
	check_fill(memory, BYTES, 5);
	CHECK(!munmap(memory, BYTES));
}

static atomic_bool came_back;

static void *move_with_a_cancellation_pending(void *arg)
{
	struct pf_user *call = arg;
	int state;

	CHECK(!pthread_cancel(pthread_self()));
	CHECK(pf_user_run(call) == 0);
	CHECK(!pthread_setcancelstate(PTHREAD_CANCEL_DISABLE, &state));
	CHECK(state == PTHREAD_CANCEL_ENABLE);
	atomic_store(&came_back, true);
	CHECK(!pthread_setcancelstate(PTHREAD_CANCEL_ENABLE, NULL));
	pthread_testcancel();
	return NULL;
}

/* A thread that is to end does so after the move: no page is away, no file open. */
static void ends_after_the_move(uint32_t way)
{
	unsigned char *memory = memory_new(BYTES, false);
	struct pf_extent extent = extent_of(memory, BYTES, false);
	struct pf_user call = call_on(&extent, way);
	pthread_t thread;
	void *result;

	fill(memory, BYTES, 6);
	no_trouble(memory);
	atomic_store(&came_back, false);
	CHECK(!pthread_create(&thread, NULL, move_with_a_cancellation_pending, &call));
	CHECK(!pthread_join(thread, &result));
	CHECK(result == PTHREAD_CANCELED && atomic_load(&came_back));
	CHECK(call.progress.bytes_moved == BYTES);
	check_fill(memory, BYTES, 6);
	CHECK(!munmap(memory, BYTES));
}

int main(void)
{
	int64_t features = pf_user_features();

	setvbuf(stdout, NULL, _IOLBF, 0);
	alarm(600 * SLOWER);
	memory_nodes(&node, 1);
	if (features < 0) {
		printf("user trouble: ok, no userfaultfd here: %s\n", strerror((int)-features));
		return 0;
	}
	for (uint32_t way = PF_USER_CHECKED; way <= PF_USER_PROTECT; way++) {
		if (!way_works(way, false))
			continue;
		no_memory(way, false, 0);
		no_memory(way, false, 1);
		if (way != PF_USER_CHECKED) {
			no_memory(way, true, 0);
			no_memory(way, true, 2);
		}
		no_descriptors(way, 0);
		no_descriptors(way, 1);
		ends_after_the_move(way);
	}
	if (way_works(PF_USER_CHECKED, false)) {
		changed_and_no_memory(protect_parts, PF_USER_NO_FILL, false);
		changed_and_no_memory(protect_parts, PF_USER_FILL, false);
		changed_and_no_memory(lock_part, PF_USER_NO_FILL, true);
		many_changes();
	}
	pf_crew_stop();
	printf("user trouble: ok\n");
	return 0;
}
