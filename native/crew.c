// SPDX-License-Identifier: Apache-2.0
/*
 * The crew: threads that are created once, kept, and lent to one caller at a
 * time each. The caller works too, and takes back helpers that never started,
 * so a starved helper costs the caller nothing.
 */
#include <errno.h>
#include <sched.h>
#include <unistd.h>

#include "calls.h"
#include "crew.h"
#include "futex.h"
#include "pages.h"
#include "signals.h"

enum {
	LIFT_US = 500,		/* that a caller waits for helpers before it lifts them */
	STARVED_JOBS = 2,	/* in a row: then callers go on alone for a while */
	ALONE_US = 10000,	/* at first, then doubled */
	ALONE_DOUBLED = 5,	/* so often: 0.32 s at most */
	LONG_US = 1000000,
	AGAIN_US = 1000,	/* a caller has worked at least, before it calls again */
};

#define AGAIN_BYTES (8u << 20)	/* less is done before helpers have taken their part */

/* The job that this thread is the caller of, while it works. Of which model: see helper.c. */
static __thread struct job *calling __attribute__((tls_model("initial-exec")));

static struct {
	pthread_mutex_t lock;
	struct helper *helpers;
	struct watch *watch;
	uint32_t size;
	uint32_t named;
	uint32_t starved;	/* jobs in a row whose helpers were starved */
	uint64_t alone_until_us;	/* nobody is invited before */
	cpu_set_t anywhere[CPU_SETS];	/* affinity to go back to when not pinned */
	bool has_anywhere;
	sigset_t fork_before;	/* the signals of a thread that forks */
	bool probed;
	bool yields;
	bool stuck;		/* lifting was refused, whatever the probe said */
	uid_t probed_as;
} crew = { .lock = PTHREAD_MUTEX_INITIALIZER };

/*
 * A fork in another thread waits for this lock, so nobody allocates memory or
 * creates a thread under it: that takes locks of the C library, or of an
 * allocator put before it, which the fork may have taken already. And no signal
 * arrives: a handler that forks, exits, or moves pages would wait for the thread
 * that it has interrupted.
 */
static void fork_prepare(void)
{
	sigset_t before;

	quiet_lock(&crew.lock, &before);
	crew.fork_before = before;
}

static void fork_parent(void)
{
	sigset_t before = crew.fork_before;

	quiet_unlock(&crew.lock, &before);
}

/*
 * The threads do not exist in the child: forget them, their memory included.
 * When a job's poll has forked, its caller will look at its helpers once more.
 */
static void fork_child(void)
{
	struct helper *helper = crew.helpers;

	while (helper) {
		struct helper *next = helper->next;

		if (helper->taken) {
			helper->state = HELPER_DONE;
			helper->lifted = 0;
			helper->yields = false;	/* its thread is the parent's: let it be */
		} else {
			unmap_memory(helper, sizeof(*helper));
		}
		helper = next;
	}
	if (crew.watch)
		watch_forget(crew.watch);
	crew.helpers = NULL;
	crew.watch = NULL;
	crew.size = 0;
	fork_parent();
}

/*
 * Before the handlers of the engines, so that a fork takes this lock after
 * theirs: while they wait for helpers to finish, these may have to be lifted.
 */
__attribute__((constructor(200))) static void register_fork(void)
{
	pthread_atfork(fork_prepare, fork_parent, fork_child);
}

/* Remember what this process may use before any helper is pinned. */
static void remember_affinity(void)
{
	if (!crew.has_anywhere)
		crew.has_anywhere = !sched_getaffinity(0, sizeof(crew.anywhere), crew.anywhere);
}

/* ---- Under crew.lock ---------------------------------------------------------- */

static bool works(struct helper *helper)
{
	return __atomic_load_n(&helper->state, __ATOMIC_ACQUIRE) == HELPER_WORKING;
}

static void lift(struct helper *helper, int policy)
{
	if (helper_lift(helper, policy))
		return;
	crew.stuck = true;
	crew.probed = false;
}

/* True while there is somebody to look after. */
static bool look_after_helpers(void)
{
	struct helper *helper;
	bool any = false;
	sigset_t before;

	quiet_lock(&crew.lock, &before);
	for (helper = crew.helpers; helper; helper = helper->next) {
		if (!helper->taken || !helper->yields || !works(helper))
			continue;
		any = true;
		if (!watch_starved(helper))
			continue;
		helper_starved(helper);
		lift(helper, helper->job->policy);
	}
	quiet_unlock(&crew.lock, &before);
	return any;
}

static void dismiss(struct helper *helper)
{
	struct helper **link = &crew.helpers;

	while (*link != helper)
		link = &(*link)->next;
	*link = helper->next;
	crew.size--;
	helper_dismiss(helper);
}

/*
 * Who may not lift a helper must not lower it either: at SCHED_IDLE it would be
 * stuck, with all that it holds. Asked again when the user has changed, and
 * then helpers of the other sort go.
 */
static void probe_yielding(void)
{
	struct helper *helper, *next;
	uid_t user = geteuid();

	if (crew.probed && crew.probed_as == user)
		return;
	if (crew.probed_as != user)
		crew.stuck = false;
	crew.yields = !crew.stuck && may_lift();
	crew.probed = true;
	crew.probed_as = user;
	for (helper = crew.helpers; helper; helper = next) {
		next = helper->next;
		if (!helper->taken && helper->yields != crew.yields)
			dismiss(helper);
	}
}

static struct helper *idle_helper(void)
{
	struct helper *helper;

	for (helper = crew.helpers; helper; helper = helper->next)
		if (!helper->taken && helper->yields == crew.yields)
			return helper;
	return NULL;
}

/* Gives the lock up meanwhile, and the signals of this thread stay blocked. */
static struct helper *new_helper(void)
{
	bool watched = !crew.yields || crew.watch;
	uint32_t number = ++crew.named;
	struct watch *watch = NULL;
	struct helper *helper;

	pthread_mutex_unlock(&crew.lock);
	if (!watched)
		watch = watch_start(look_after_helpers);
	helper = helper_create(number);
	pthread_mutex_lock(&crew.lock);
	if (watch && !crew.watch) {
		crew.watch = watch;
	} else if (watch) {		/* another caller was faster */
		pthread_mutex_unlock(&crew.lock);
		watch_stop(watch);
		pthread_mutex_lock(&crew.lock);
	}
	if (!helper)
		return NULL;
	if (!crew.watch || helper->tid <= 0)
		crew.yields = false;	/* nobody would, or could, lift it */
	helper->yields = crew.yields;
	helper->next = crew.helpers;
	crew.helpers = helper;
	crew.size++;
	return helper;
}

/*
 * Others have the CPUs: to wake helpers that get none takes time from them and
 * from the caller, so it is tried now and then only. In a job that was that long
 * helpers were of use before somebody needed their CPUs: the row begins anew.
 */
static void learn(const struct job *job)
{
	const struct helper *invited = job->invited;
	uint32_t helpers = 0, starved = 0, helped = 0, doubled;

	for (; invited; invited = invited->beside) {
		helpers++;
		if (__atomic_load_n(&invited->starved, __ATOMIC_RELAXED))
			starved++;
		else if (__atomic_load_n(&invited->state, __ATOMIC_ACQUIRE) == HELPER_DONE)
			helped++;
	}
	if ((2 * starved < helpers && helped) || (helpers && now_us() - job->begun_us > LONG_US))
		crew.starved = 0;
	if (2 * starved < helpers || !helpers)
		return;		/* after a short job, nothing is known */
	if (++crew.starved < STARVED_JOBS)
		return;
	doubled = crew.starved - STARVED_JOBS;
	if (doubled > ALONE_DOUBLED)
		doubled = ALONE_DOUBLED;
	crew.alone_until_us = now_us() + ((uint64_t)ALONE_US << doubled);
}

/* ---- Running a job -------------------------------------------------------------- */

/* The CPU of helper number i when the caller sits on caller_cpu. */
static int32_t helper_cpu(const int32_t *cpus, uint32_t threads, uint32_t i, int caller_cpu)
{
	if (!cpus)
		return -1;
	return i < threads && cpus[i] == caller_cpu ? cpus[0] : cpus[i];
}

/* A helper that is lifted gets no more than a caller of the usual sort has. */
static int policy_of_caller(void)
{
	int policy = sched_getscheduler(0) & ~SCHED_RESET_ON_FORK;

	return policy == SCHED_IDLE || policy == SCHED_BATCH ? policy : SCHED_OTHER;
}

static void invite(struct job *job, uint32_t threads, const int32_t *cpus)
{
	int caller_cpu = sched_getcpu();
	sigset_t before;
	uint32_t i;

	quiet_lock(&crew.lock, &before);
	remember_affinity();
	probe_yielding();
	if (crew.starved >= STARVED_JOBS && now_us() < crew.alone_until_us) {
		job->alone_until_us = crew.alone_until_us;
		threads = 1;
	}
	for (i = 1; i < threads; i++) {
		struct helper *helper = idle_helper();

		if (!helper)
			helper = new_helper();
		if (!helper)
			break;
		helper->taken = true;
		helper->watch = helper->yields ? crew.watch : NULL;
		helper->beside = job->invited;
		job->invited = helper;
		helper_pin(helper, helper_cpu(cpus, threads, i, caller_cpu),
			   crew.has_anywhere ? crew.anywhere : NULL);
		helper_offer(helper, job, i);
	}
	quiet_unlock(&crew.lock, &before);
}

static void give_up_helpers(const struct job *job)
{
	struct helper *helper, *next;
	sigset_t before;

	quiet_lock(&crew.lock, &before);
	learn(job);
	for (helper = job->invited; helper; helper = next) {
		next = helper->beside;
		helper->taken = false;
		__atomic_store_n(&helper->state, HELPER_IDLE, __ATOMIC_RELEASE);
		/* Not after the user has changed: then another thread takes its place. */
		if (!helper_rest(helper)) {
			crew.probed = false;
			dismiss(helper);
		}
	}
	quiet_unlock(&crew.lock, &before);
}

static void lift_all(struct helper *invited, int policy)
{
	sigset_t before;

	quiet_lock(&crew.lock, &before);
	for (struct helper *helper = invited; helper; helper = helper->beside)
		if (works(helper))
			lift(helper, policy);
	quiet_unlock(&crew.lock, &before);
}

struct waiting {
	struct job *job;
	int (*poll)(void *arg);
	void *poll_arg;
	uint32_t poll_us;	/* 0: never */
	uint64_t poll_at;
	uint64_t lift_at;	/* 0: has been done */
};

static void wait_for(struct waiting *waiting, struct helper *helper)
{
	while (works(helper)) {
		uint64_t now = now_us();
		uint64_t until = 0;

		if (waiting->lift_at && now >= waiting->lift_at) {
			lift_all(waiting->job->invited, waiting->job->policy);
			waiting->lift_at = 0;
		}
		if (waiting->poll_us && now >= waiting->poll_at) {
			waiting->poll(waiting->poll_arg);
			now = now_us();
			waiting->poll_at = now + waiting->poll_us;
		}
		if (waiting->poll_us)
			until = waiting->poll_at;
		if (waiting->lift_at && (!until || waiting->lift_at < until))
			until = waiting->lift_at;
		if (until && until <= now)
			continue;
		futex_wait(&helper->state, HELPER_WORKING, until ? until - now : 0);
	}
}

static int run_job(uint32_t threads, const int32_t *cpus,
		   void (*work)(void *arg, uint32_t worker), void *arg,
		   int (*poll)(void *arg), void *poll_arg, uint32_t poll_us)
{
	struct job job = { .work = work, .arg = arg, .begun_us = now_us() };
	struct waiting waiting = {
		.job = &job, .poll = poll, .poll_arg = poll_arg, .poll_us = poll ? poll_us : 0,
	};
	struct job *before = calling;	/* a poll of that one's has come here */
	struct helper *helper;
	int workers = 1;

	if (threads == 1) {
		calling = NULL;
		work(arg, 0);
		calling = before;
		return 1;
	}
	job.policy = policy_of_caller();
	invite(&job, threads, cpus);

	calling = &job;
	work(arg, 0);
	calling = before;

	waiting.lift_at = now_us() + LIFT_US;
	waiting.poll_at = now_us() + poll_us;
	for (helper = job.invited; helper; helper = helper->beside)
		workers += !helper_take_back(helper);
	for (helper = job.invited; helper; helper = helper->beside)
		wait_for(&waiting, helper);
	give_up_helpers(&job);
	return workers;
}

int pf_crew_run(uint32_t threads, const int32_t *cpus,
		void (*work)(void *arg, uint32_t worker), void *arg,
		int (*poll)(void *arg), void *poll_arg, uint32_t poll_us)
{
	int cancelling, workers;

	if (!threads || threads > PF_MAX_THREADS)
		return -EINVAL;
	/* The job is on this thread's stack, and helpers work for it. */
	pthread_setcancelstate(PTHREAD_CANCEL_DISABLE, &cancelling);
	workers = run_job(threads, cpus, work, arg, poll, poll_arg, poll_us);
	pthread_setcancelstate(cancelling, NULL);
	return workers;
}

bool crew_call_again(uint64_t left)
{
	struct job *job = calling;
	uint32_t helpers = 0, missed = 0;
	struct helper *helper;

	if (!job || left < AGAIN_BYTES || now_us() - job->begun_us < AGAIN_US)
		return false;
	if (!job->invited)
		return job->alone_until_us && now_us() >= job->alone_until_us;
	for (helper = job->invited; helper; helper = helper->beside) {
		helpers++;
		if (__atomic_load_n(&helper->state, __ATOMIC_ACQUIRE) == HELPER_DONE)
			missed += __atomic_load_n(&helper->starved, __ATOMIC_RELAXED);
		else if (helper_never_came(helper))
			missed++;
		else
			return false;
	}
	if (2 * missed < helpers)	/* learn() would not make it wait the next time */
		return false;
	for (helper = job->invited; helper; helper = helper->beside)
		if (__atomic_load_n(&helper->state, __ATOMIC_ACQUIRE) != HELPER_DONE)
			helper_starved(helper);
	return true;
}

/* ---- The crew as a whole ---------------------------------------------------------- */

uint32_t pf_crew_size(void)
{
	sigset_t before;
	uint32_t size;

	quiet_lock(&crew.lock, &before);
	size = crew.size;
	quiet_unlock(&crew.lock, &before);
	return size;
}

int pf_crew_yields(void)
{
	sigset_t before;
	bool yields;

	quiet_lock(&crew.lock, &before);
	probe_yielding();
	yields = crew.yields;
	quiet_unlock(&crew.lock, &before);
	return yields;
}

__attribute__((destructor)) void pf_crew_stop(void)
{
	struct helper **link = &crew.helpers;
	struct helper *ended = NULL;
	struct watch *watch = NULL;
	sigset_t before;

	quiet_lock(&crew.lock, &before);
	while (*link) {
		struct helper *helper = *link;

		if (helper->taken) {	/* another thread's call is under way */
			link = &helper->next;
			continue;
		}
		*link = helper->next;
		helper->next = ended;
		ended = helper;
		crew.size--;
	}
	crew.starved = 0;
	if (!crew.helpers) {
		watch = crew.watch;
		crew.watch = NULL;
	}
	quiet_unlock(&crew.lock, &before);
	while (ended) {
		struct helper *helper = ended;

		ended = helper->next;
		helper_end(helper);
	}
	if (watch)
		watch_stop(watch);
}
