// SPDX-License-Identifier: Apache-2.0
/*
 * The crew: threads that are created once, kept, and lent to one caller at a
 * time each. The caller works too, and takes back helpers that never started,
 * so a starved helper costs the caller nothing.
 */
#include <errno.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "pageferry.h"

enum { HELPER_STACK = 256 << 10 };

/* One call of pf_crew_run(), on its caller's stack, guarded by crew.lock. */
struct job {
	void (*work)(void *arg, uint32_t worker);
	void *arg;
	pthread_cond_t done;
	uint32_t running;
};

struct helper {
	struct helper *next;	/* in crew.helpers, for as long as the thread lives */
	pthread_t thread;
	pthread_cond_t wake;
	struct job *job;	/* assigned, not yet begun */
	uint32_t worker;
	int32_t cpu;		/* wanted, -1: anywhere */
	int32_t pinned;		/* in force, -1: not pinned */
	bool busy;
	bool stop;
};

static struct {
	pthread_mutex_t lock;
	struct helper *helpers;
	uint32_t size;
	uint32_t named;
	cpu_set_t *anywhere;	/* affinity to go back to when not pinned */
	size_t anywhere_size;
} crew = { .lock = PTHREAD_MUTEX_INITIALIZER };

static pthread_once_t fork_once = PTHREAD_ONCE_INIT;

static void fork_prepare(void)
{
	pthread_mutex_lock(&crew.lock);
}

static void fork_parent(void)
{
	pthread_mutex_unlock(&crew.lock);
}

/* The helpers do not exist in the child: forget them, their memory included. */
static void fork_child(void)
{
	struct helper *helper = crew.helpers;

	while (helper) {
		struct helper *next = helper->next;

		free(helper);
		helper = next;
	}
	crew.helpers = NULL;
	crew.size = 0;
	pthread_mutex_init(&crew.lock, NULL);
}

static void register_fork(void)
{
	pthread_atfork(fork_prepare, fork_parent, fork_child);
}

static void pin(struct helper *helper, int32_t cpu)
{
	cpu_set_t *set;
	size_t size;

	if (cpu == helper->pinned)
		return;
	if (cpu < 0) {
		if (crew.anywhere)
			sched_setaffinity(0, crew.anywhere_size, crew.anywhere);
		helper->pinned = -1;
		return;
	}
	set = CPU_ALLOC(cpu + 1);
	if (!set)
		return;
	size = CPU_ALLOC_SIZE(cpu + 1);
	CPU_ZERO_S(size, set);
	CPU_SET_S(cpu, size, set);
	/* A CPU that a cpuset took away meanwhile: run where the kernel lets us. */
	if (!sched_setaffinity(0, size, set))
		helper->pinned = cpu;
	CPU_FREE(set);
}

static void *helper_main(void *arg)
{
	struct helper *self = arg;

	pthread_mutex_lock(&crew.lock);
	for (;;) {
		struct job *job;

		while (!self->job && !self->stop)
			pthread_cond_wait(&self->wake, &crew.lock);
		if (!self->job)
			break;
		job = self->job;
		self->job = NULL;
		job->running++;
		pthread_mutex_unlock(&crew.lock);

		pin(self, self->cpu);
		job->work(job->arg, self->worker);

		pthread_mutex_lock(&crew.lock);
		self->busy = false;
		if (!--job->running)
			pthread_cond_signal(&job->done);
	}
	pthread_mutex_unlock(&crew.lock);
	return NULL;
}

/* Remember what this process may use before any helper is pinned. */
static void remember_affinity(void)
{
	long cpus = sysconf(_SC_NPROCESSORS_CONF);
	int count = cpus > 1024 ? (int)cpus : 1024;

	if (crew.anywhere)
		return;
	crew.anywhere = CPU_ALLOC(count);
	if (!crew.anywhere)
		return;
	crew.anywhere_size = CPU_ALLOC_SIZE(count);
	if (sched_getaffinity(0, crew.anywhere_size, crew.anywhere)) {
		CPU_FREE(crew.anywhere);
		crew.anywhere = NULL;
	}
}

/* Called with crew.lock held. NULL when the system has no thread to give. */
static struct helper *helper_create(void)
{
	struct helper *helper = calloc(1, sizeof(*helper));
	sigset_t all, before;
	pthread_attr_t attr;
	char name[16];
	int error;

	if (!helper)
		return NULL;
	helper->cpu = -1;
	helper->pinned = -1;
	pthread_cond_init(&helper->wake, NULL);
	pthread_attr_init(&attr);
	pthread_attr_setstacksize(&attr, HELPER_STACK);
	/* The program's handlers must never run on a thread it does not know. */
	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, &before);
	error = pthread_create(&helper->thread, &attr, helper_main, helper);
	pthread_sigmask(SIG_SETMASK, &before, NULL);
	pthread_attr_destroy(&attr);
	if (error) {
		pthread_cond_destroy(&helper->wake);
		free(helper);
		return NULL;
	}
	snprintf(name, sizeof(name), "pageferry/%u", ++crew.named);
	pthread_setname_np(helper->thread, name);
	helper->next = crew.helpers;
	crew.helpers = helper;
	crew.size++;
	return helper;
}

static struct helper *helper_idle(void)
{
	struct helper *helper;

	for (helper = crew.helpers; helper; helper = helper->next)
		if (!helper->busy && !helper->stop)
			return helper;
	return NULL;
}

static void deadline_in(struct timespec *when, uint32_t us)
{
	clock_gettime(CLOCK_MONOTONIC, when);
	when->tv_sec += us / 1000000;
	when->tv_nsec += (long)(us % 1000000) * 1000;
	if (when->tv_nsec >= 1000000000) {
		when->tv_sec++;
		when->tv_nsec -= 1000000000;
	}
}

/* The CPU of helper number i when the caller sits on caller_cpu. */
static int32_t helper_cpu(const int32_t *cpus, uint32_t threads, uint32_t i, int caller_cpu)
{
	if (!cpus)
		return -1;
	return i < threads && cpus[i] == caller_cpu ? cpus[0] : cpus[i];
}

int pf_crew_run(uint32_t threads, const int32_t *cpus,
		void (*work)(void *arg, uint32_t worker), void *arg,
		int (*poll)(void *arg), void *poll_arg, uint32_t poll_us)
{
	struct job job = { .work = work, .arg = arg };
	uint32_t assigned = 0;
	struct helper *helper;
	pthread_condattr_t attr;
	int caller_cpu;
	uint32_t i;

	if (!threads || threads > PF_MAX_THREADS)
		return -EINVAL;
	if (threads == 1) {
		work(arg, 0);
		return 1;
	}
	pthread_once(&fork_once, register_fork);
	pthread_condattr_init(&attr);
	pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
	pthread_cond_init(&job.done, &attr);
	pthread_condattr_destroy(&attr);
	caller_cpu = sched_getcpu();

	pthread_mutex_lock(&crew.lock);
	remember_affinity();
	for (i = 1; i < threads; i++) {
		helper = helper_idle();
		if (!helper)
			helper = helper_create();
		if (!helper)
			break;
		helper->busy = true;
		helper->job = &job;
		helper->worker = i;
		helper->cpu = helper_cpu(cpus, threads, i, caller_cpu);
		pthread_cond_signal(&helper->wake);
		assigned++;
	}
	pthread_mutex_unlock(&crew.lock);

	work(arg, 0);

	pthread_mutex_lock(&crew.lock);
	for (helper = crew.helpers; helper; helper = helper->next) {
		if (helper->job != &job)
			continue;
		helper->job = NULL;
		helper->busy = false;
		assigned--;
	}
	while (job.running) {
		struct timespec until;

		if (!poll || !poll_us) {
			pthread_cond_wait(&job.done, &crew.lock);
			continue;
		}
		deadline_in(&until, poll_us);
		if (pthread_cond_timedwait(&job.done, &crew.lock, &until) != ETIMEDOUT)
			continue;
		pthread_mutex_unlock(&crew.lock);
		poll(poll_arg);
		pthread_mutex_lock(&crew.lock);
	}
	pthread_mutex_unlock(&crew.lock);
	pthread_cond_destroy(&job.done);
	return (int)assigned + 1;
}

uint32_t pf_crew_size(void)
{
	uint32_t size;

	pthread_mutex_lock(&crew.lock);
	size = crew.size;
	pthread_mutex_unlock(&crew.lock);
	return size;
}

__attribute__((destructor)) void pf_crew_stop(void)
{
	struct helper **link = &crew.helpers;
	struct helper *ended = NULL;

	pthread_mutex_lock(&crew.lock);
	while (*link) {
		struct helper *helper = *link;

		if (helper->busy) {	/* another thread's call is under way */
			link = &helper->next;
			continue;
		}
		helper->stop = true;
		pthread_cond_signal(&helper->wake);
		*link = helper->next;
		helper->next = ended;
		ended = helper;
		crew.size--;
	}
	pthread_mutex_unlock(&crew.lock);
	while (ended) {
		struct helper *helper = ended;

		ended = helper->next;
		pthread_join(helper->thread, NULL);
		pthread_cond_destroy(&helper->wake);
		free(helper);
	}
}
