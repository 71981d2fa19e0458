// SPDX-License-Identifier: Apache-2.0
/* One helper of the crew: its thread, its priority, and what it may claim. */
#include <errno.h>
#include <fcntl.h>
#include <link.h>
#include <sched.h>
#include <stdio.h>
#include <sys/resource.h>

#include "calls.h"
#include "crew.h"
#include "futex.h"
#include "pages.h"
#include "signals.h"

enum {
	HELPER_STACK = 256 << 10,
	LOOK_US = 1000,		/* between two looks into schedstat */
	NEVER_US = 10000,	/* a virtual CPU that sleeps may take milliseconds to wake up */
	LATE_NS = 2000000,	/* less than a tick; an idle CPU is had in a tenth of that */
	JUDGE_NS = 10000000,	/* of running and waiting, to judge by */
	WINDOW_NS = 50000000,	/* then a new account begins */
	WAIT_SHARE = 4,		/* one in so many of it waiting: leave */
};

/*
 * The helper that this thread is; NULL in all others. The usual TLS model would
 * make a helper allocate memory at its first look, under locks of the C library.
 */
static __thread struct helper *current __attribute__((tls_model("initial-exec")));

/* How long this thread has run and how long it has waited for a CPU: CONFIG_SCHED_INFO. */
static bool schedstat(uint64_t *run_ns, uint64_t *wait_ns)
{
	int fd = open("/proc/thread-self/schedstat", O_RDONLY | O_CLOEXEC);
	unsigned long long run, wait;
	char text[96];
	ssize_t size;

	if (fd < 0)
		return false;
	size = read(fd, text, sizeof(text) - 1);
	close(fd);
	if (size <= 0)
		return false;
	text[size] = '\0';
	if (sscanf(text, "%llu %llu", &run, &wait) != 2)
		return false;
	*run_ns = run;
	*wait_ns = wait;
	return true;
}

/*
 * Beside a busy thread one at SCHED_IDLE gets a CPU after a tick, for a tick,
 * and then none for a second: no time to begin anything. What counts is how
 * long it waited in the run queue, as a virtual CPU that sleeps may take
 * milliseconds to wake up. The account of that may have the time in which it
 * waited for a job that was taken back, so it must not be longer than this one
 * has been offered. A new thread has had its own beginning to do.
 */
static bool came_late(const struct helper *self)
{
	if (!self->yields || self->jobs < 2 ||
	    self->own.looked_us - self->offered_us <= LATE_NS / 1000)
		return false;
	return !self->own.rested_ns || self->own.wait_ns - self->own.rested_ns > LATE_NS;
}

void helper_starved(struct helper *helper)
{
	__atomic_store_n(&helper->starved, 1, __ATOMIC_RELAXED);
}

static void open_account(struct helper *self)
{
	self->own.looked_us = now_us();
	self->own.known = schedstat(&self->own.run_ns, &self->own.wait_ns);
	if (!self->own.known)
		self->own.rested_ns = 0;
	self->own.late = came_late(self);
	if (self->own.late)
		helper_starved(self);
}

/* After the job, so that nobody waits for it. */
static void close_account(struct helper *self)
{
	uint64_t run_ns;

	if (!schedstat(&run_ns, &self->own.rested_ns))
		self->own.rested_ns = 0;
}

bool crew_go_on(void)
{
	struct helper *self = current;
	uint64_t run_ns, wait_ns;

	if (!self)
		return true;
	if (__atomic_load_n(&self->starved, __ATOMIC_RELAXED))
		return false;
	if (!self->own.known || now_us() - self->own.looked_us < LOOK_US)
		return true;
	if (!schedstat(&run_ns, &wait_ns))
		return true;
	self->own.looked_us = now_us();
	run_ns -= self->own.run_ns;
	wait_ns -= self->own.wait_ns;
	if (run_ns + wait_ns < JUDGE_NS)
		return true;
	if (wait_ns * WAIT_SHARE >= run_ns + wait_ns) {
		helper_starved(self);
		return false;
	}
	if (run_ns + wait_ns >= WINDOW_NS) {
		self->own.run_ns += run_ns;
		self->own.wait_ns += wait_ns;
	}
	return true;
}

static uint32_t state_of(struct helper *helper)
{
	return __atomic_load_n(&helper->state, __ATOMIC_ACQUIRE);
}

static bool change(struct helper *helper, uint32_t from, uint32_t to)
{
	return __atomic_compare_exchange_n(&helper->state, &from, to, false,
					   __ATOMIC_ACQ_REL, __ATOMIC_ACQUIRE);
}

static void *helper_main(void *arg)
{
	struct helper *self = arg;
	uint32_t state;

	current = self;
	while ((state = state_of(self)) != HELPER_STOP) {
		if (state != HELPER_OFFERED) {
			futex_wait(&self->state, state, 0);
			continue;
		}
		if (!change(self, HELPER_OFFERED, HELPER_WORKING))
			continue;	/* taken back */
		open_account(self);
		if (self->watch && !self->own.late)	/* else it leaves at once */
			watch_helper(self->watch);
		self->job->work(self->job->arg, self->worker);
		/* The caller may go, and its job with it, from here on. */
		__atomic_store_n(&self->state, HELPER_DONE, __ATOMIC_RELEASE);
		futex_wake(&self->state);
		close_account(self);
	}
	if (self->detached)
		unmap_memory(self, sizeof(*self));
	return NULL;
}

/* The C library puts the program's thread-local variables on each thread's stack. */
static size_t tls_bytes;

static int add_tls(struct dl_phdr_info *info, size_t size, void *arg)
{
	(void)size;
	for (int i = 0; i < info->dlpi_phnum; i++)
		if (info->dlpi_phdr[i].p_type == PT_TLS)
			*(size_t *)arg += info->dlpi_phdr[i].p_memsz + info->dlpi_phdr[i].p_align;
	return 0;
}

/* While nobody else can have the loader's lock; what is loaded later gets them elsewhere. */
__attribute__((constructor)) static void measure_tls(void)
{
	dl_iterate_phdr(add_tls, &tls_bytes);
}

bool thread_create(pthread_t *thread, size_t stack, const char *name, void *(*main)(void *arg),
		   void *arg)
{
	sigset_t before;
	pthread_attr_t attr;
	int error;

	pthread_attr_init(&attr);
	pthread_attr_setstacksize(&attr, (stack + tls_bytes + 4095) & ~(size_t)4095);
	/* The program's handlers must never run on a thread it does not know. */
	signals_block(&before);
	error = pthread_create(thread, &attr, main, arg);
	signals_restore(&before);
	pthread_attr_destroy(&attr);
	if (!error)
		pthread_setname_np(*thread, name);
	return !error;
}

/* What a new thread inherits; a helper must not. */
static bool is_realtime(void)
{
	int policy = sched_getscheduler(0) & ~SCHED_RESET_ON_FORK;

	return policy == SCHED_FIFO || policy == SCHED_RR;
}

struct helper *helper_create(uint32_t number)
{
	struct helper *helper = map_memory(sizeof(*helper));
	struct sched_param none = { .sched_priority = 0 };
	char name[16];

	if (!helper)
		return NULL;
	helper->pinned = -1;
	snprintf(name, sizeof(name), "pageferry/%u", number);
	if (!thread_create(&helper->thread, HELPER_STACK, name, helper_main, helper)) {
		unmap_memory(helper, sizeof(*helper));
		return NULL;
	}
	/* The id of a thread's CPU clock is made of the thread's own: no need to wait for it. */
	if (!pthread_getcpuclockid(helper->thread, &helper->clock))
		helper->tid = ~(helper->clock >> 3);
	if (helper->tid > 0 && is_realtime())
		sched_setscheduler(helper->tid, SCHED_OTHER, &none);
	return helper;
}

void helper_offer(struct helper *helper, struct job *job, uint32_t worker)
{
	struct sched_param none = { .sched_priority = 0 };

	helper->job = job;
	helper->worker = worker;
	helper->jobs++;
	helper->offered_us = now_us();
	helper->starved = 0;
	helper->lifted = helper->yields && sched_setscheduler(helper->tid, SCHED_IDLE, &none);
	__atomic_store_n(&helper->state, HELPER_OFFERED, __ATOMIC_RELEASE);
	futex_wake(&helper->state);
}

bool helper_never_came(struct helper *helper)
{
	return helper->yields && state_of(helper) == HELPER_OFFERED &&
	       now_us() - helper->offered_us > NEVER_US;
}

bool helper_take_back(struct helper *helper)
{
	bool never = helper_never_came(helper);

	if (!change(helper, HELPER_OFFERED, HELPER_IDLE))
		return false;
	if (never)
		helper_starved(helper);
	return true;
}

void helper_pin(struct helper *helper, int32_t cpu, const cpu_set_t *anywhere)
{
	cpu_set_t set[CPU_SETS];

	if (cpu == helper->pinned || helper->tid <= 0)
		return;
	if (cpu < 0) {
		if (anywhere)
			sched_setaffinity(helper->tid, sizeof(set), anywhere);
		helper->pinned = -1;
		return;
	}
	CPU_ZERO_S(sizeof(set), set);
	CPU_SET_S(cpu, sizeof(set), set);	/* beyond the sets: none, which is refused */
	/* A CPU that a cpuset took away meanwhile: run where the kernel lets us. */
	if (!sched_setaffinity(helper->tid, sizeof(set), set))
		helper->pinned = cpu;
}

bool helper_lift(struct helper *helper, int policy)
{
	struct sched_param none = { .sched_priority = 0 };

	if (!helper->yields || policy == SCHED_IDLE)
		return true;
	return __atomic_exchange_n(&helper->lifted, 1, __ATOMIC_RELAXED) ||
	       !sched_setscheduler(helper->tid, policy, &none);
}

bool helper_rest(struct helper *helper)
{
	struct sched_param none = { .sched_priority = 0 };

	return !helper->yields || !sched_setscheduler(helper->tid, SCHED_OTHER, &none);
}

void helper_end(struct helper *helper)
{
	helper_lift(helper, SCHED_OTHER);
	__atomic_store_n(&helper->state, HELPER_STOP, __ATOMIC_RELEASE);
	futex_wake(&helper->state);
	pthread_join(helper->thread, NULL);
	unmap_memory(helper, sizeof(*helper));
}

void helper_dismiss(struct helper *helper)
{
	pthread_detach(helper->thread);
	helper_lift(helper, SCHED_OTHER);
	helper->detached = true;
	__atomic_store_n(&helper->state, HELPER_STOP, __ATOMIC_RELEASE);
	futex_wake(&helper->state);	/* it may be gone already: a wake reads nothing */
}

bool may_lift(void)
{
	int nice = getpriority(PRIO_PROCESS, 0);	/* of this thread alone, on Linux */

	/* At the lowest value nothing could be tried, and nothing said. */
	if (nice <= -20 || setpriority(PRIO_PROCESS, 0, nice - 1))
		return false;
	setpriority(PRIO_PROCESS, 0, nice);
	return true;
}
