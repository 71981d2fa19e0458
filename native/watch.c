// SPDX-License-Identifier: Apache-2.0
/*
 * The crew's watch: while helpers work it looks every 5 ms for one that is in
 * the middle of a piece and gets no CPU, since it may hold what others wait for
 * in the kernel: a lock, or a page that is on its way. The caller cannot do
 * this, it may be the one that waits. When no helper works it sleeps: on a busy
 * machine its looks would be what costs others most.
 */
#include <fcntl.h>
#include <sched.h>
#include <stdio.h>
#include <string.h>

#include "calls.h"
#include "crew.h"
#include "futex.h"

enum {
	WATCH_STACK = 128 << 10,
	WATCH_US = 5000,
	SHORTEST_NS = 3000000,
	STARVED_SHARE = 8,	/* ran for less than this part of the time */
};

/* Bits, so that each change is one that the other threads see in its order. */
enum { WATCH_LOOKS = 1, WATCH_STOP = 2 };

struct watch {
	pthread_t thread;
	uint32_t state;		/* WATCH_ bits; a futex */
	bool (*look)(void);
};

static void *watch_main(void *arg)
{
	struct watch *watch = arg;
	struct sched_param none = { .sched_priority = 0 };
	uint32_t state;

	sched_setscheduler(0, SCHED_OTHER, &none);	/* whoever has created it */
	while (!((state = __atomic_load_n(&watch->state, __ATOMIC_ACQUIRE)) & WATCH_STOP)) {
		futex_wait(&watch->state, state, state & WATCH_LOOKS ? WATCH_US : 0);
		if (!(state & WATCH_LOOKS))
			continue;
		/* Who begins after this look says so anew. */
		__atomic_fetch_and(&watch->state, ~(uint32_t)WATCH_LOOKS, __ATOMIC_ACQ_REL);
		if (watch->look())
			__atomic_fetch_or(&watch->state, WATCH_LOOKS, __ATOMIC_ACQ_REL);
	}
	return NULL;
}

void watch_forget(struct watch *watch)
{
	unmap_memory(watch, sizeof(*watch));
}

struct watch *watch_start(bool (*look)(void))
{
	struct watch *watch = map_memory(sizeof(*watch));

	if (!watch)
		return NULL;
	watch->look = look;
	if (!thread_create(&watch->thread, WATCH_STACK, "pageferry/watch", watch_main, watch)) {
		watch_forget(watch);
		return NULL;
	}
	return watch;
}

void watch_helper(struct watch *watch)
{
	if (!(__atomic_fetch_or(&watch->state, WATCH_LOOKS, __ATOMIC_ACQ_REL) & WATCH_LOOKS))
		futex_wake(&watch->state);
}

void watch_stop(struct watch *watch)
{
	__atomic_fetch_or(&watch->state, WATCH_STOP, __ATOMIC_ACQ_REL);
	futex_wake(&watch->state);
	pthread_join(watch->thread, NULL);
	watch_forget(watch);
}

static uint64_t clock_ns(clockid_t clock)
{
	struct timespec time = { .tv_sec = 0, .tv_nsec = 0 };

	clock_gettime(clock, &time);
	return (uint64_t)time.tv_sec * 1000000000 + (uint64_t)time.tv_nsec;
}

/* A file of a helper's, and what it says up to max bytes; false: none. */
static bool read_of(const struct helper *helper, const char *name, char *text, size_t max)
{
	char path[64];
	ssize_t size;
	int fd;

	snprintf(path, sizeof(path), "/proc/self/task/%d/%s", helper->tid, name);
	fd = open(path, O_RDONLY | O_CLOEXEC);
	if (fd < 0)
		return false;
	size = read(fd, text, max - 1);
	close(fd);
	if (size <= 0)
		return false;
	text[size] = '\0';
	return true;
}

/* True unless the kernel says that the thread sleeps: then it waits for something else. */
static bool wants_a_cpu(const struct helper *helper)
{
	const char *after;
	char text[128];

	if (!read_of(helper, "stat", text, sizeof(text)))
		return true;
	after = strrchr(text, ')');	/* "TID (NAME) STATE ..." */
	return !after || after[1] != ' ' || after[2] == 'R';
}

/* How long it has waited for a CPU in all, and how often it got one: CONFIG_SCHED_INFO, else 0. */
static void waits_of(const struct helper *helper, uint64_t *wait_ns, uint64_t *turns)
{
	unsigned long long wait = 0, count = 0;
	char text[96];

	if (read_of(helper, "schedstat", text, sizeof(text)))
		sscanf(text, "%*u %llu %llu", &wait, &count);
	*wait_ns = wait;
	*turns = count;
}

/*
 * A helper sleeps in the middle of a piece too, for the kernel's RCU and work
 * queues, and wants a CPU for an instant at the end of that. So it is starved
 * when at two looks in turn it had hardly run and wanted a CPU, and in between
 * got none at all or waited for most of the time.
 */
bool watch_starved(struct helper *helper)
{
	struct helper_seen last = helper->seen;
	struct helper_seen seen = {
		.jobs = helper->jobs,
		.cpu_ns = clock_ns(helper->clock),
		.at_ns = clock_ns(CLOCK_MONOTONIC),
	};
	uint64_t passed = seen.at_ns - last.at_ns;
	bool before = last.jobs == helper->jobs;

	if (before && passed < SHORTEST_NS)
		return false;	/* too early to say */
	seen.idle = before && seen.cpu_ns - last.cpu_ns < passed / STARVED_SHARE &&
		    wants_a_cpu(helper);
	if (seen.idle)		/* asked only then: most looks cost two clocks */
		waits_of(helper, &seen.wait_ns, &seen.turns);
	helper->seen = seen;
	return seen.idle && last.idle &&
	       (seen.turns == last.turns || seen.wait_ns - last.wait_ns > passed / 2);
}
