// SPDX-License-Identifier: Apache-2.0
/* The crew: everyone works, pinned as told, kept, revoked when starved, fork-safe, gone. */
#include <errno.h>
#include <pthread.h>
#include <sched.h>
#include <semaphore.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdint.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/time.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "crew.h"
#include "pages.h"
#include "test.h"

static atomic_int ran;
static atomic_int handled_elsewhere;
static atomic_int gate;
static int expected;
static pid_t main_thread;

static pid_t thread_id(void)
{
	return (pid_t)syscall(SYS_gettid);
}

static void sleep_ms(long ms)
{
	struct timespec time = { .tv_sec = ms / 1000, .tv_nsec = ms % 1000 * 1000000 };

	nanosleep(&time, NULL);
}

static void count(void *arg, uint32_t worker)
{
	(void)worker;
	atomic_fetch_add((atomic_int *)arg, 1);
	/* Stay until all have come, else a quick caller would take the others back. */
	for (int i = 0; i < 5000 && atomic_load((atomic_int *)arg) < expected; i++)
		sleep_ms(1);
}

/* A crew that does not know yet whether the machine is busy, where all are counted on to come. */
static void anew(void)
{
	pf_crew_stop();
}

/* Where others want the CPUs a helper may not get one while its caller waits: then once more. */
static bool all_come(int threads, const int32_t *cpus, void (*work)(void *arg, uint32_t worker),
		     void *arg)
{
	for (int i = 0; i < 20; i++) {
		atomic_store(&ran, 0);
		if (pf_crew_run((uint32_t)threads, cpus, work, arg, NULL, NULL, 0) == threads)
			return true;
		anew();
	}
	return false;
}

static void everyone_works(void)
{
	expected = 4;
	for (int i = 0; i < 2; i++) {
		CHECK(all_come(4, NULL, count, &ran));
		CHECK(atomic_load(&ran) == 4);
		CHECK(pf_crew_size() == 3);	/* the caller is one of the four, the others are kept */
	}
}

static void note_cpu(void *arg, uint32_t worker)
{
	int *cpus = arg;
	cpu_set_t set;

	if (worker) {
		CHECK(!sched_getaffinity(0, sizeof(set), &set));
		CHECK(CPU_COUNT(&set) == 1);
	}
	cpus[worker] = sched_getcpu();
	atomic_fetch_add(&ran, 1);
	for (int i = 0; i < 5000 && atomic_load(&ran) < 2; i++)
		sleep_ms(1);
}

static void pinned_as_told(void)
{
	int32_t wanted[2];
	int seen[2] = { -1, -1 };
	cpu_set_t allowed;
	int cpu, n = 0;

	CHECK(!sched_getaffinity(0, sizeof(allowed), &allowed));
	for (cpu = 0; cpu < CPU_SETSIZE && n < 2; cpu++)
		if (CPU_ISSET(cpu, &allowed))
			wanted[n++] = cpu;
	if (n < 2)
		return;
	CHECK(all_come(2, wanted, note_cpu, seen));
	CHECK(seen[1] == wanted[0] || seen[1] == wanted[1]);
	/* An impossible CPU is no reason to fail: the helper runs where it may. */
	wanted[0] = wanted[1] = 1000;
	expected = 2;
	CHECK(all_come(2, wanted, count, &ran));
}

static void on_signal(int number)
{
	(void)number;
	if (thread_id() != main_thread)
		atomic_fetch_add(&handled_elsewhere, 1);
}

static void send_signals(void *arg, uint32_t worker)
{
	(void)arg;
	for (int i = 0; i < 200; i++) {
		if (!worker)
			kill(getpid(), SIGUSR1);
		sleep_ms(0);
	}
}

static void signals_stay_with_the_program(void)
{
	struct sigaction action = { .sa_handler = on_signal };
	sigset_t mask;

	main_thread = thread_id();
	CHECK(!sigaction(SIGUSR1, &action, NULL));
	pf_crew_run(4, NULL, send_signals, NULL, NULL, NULL, 0);
	CHECK(atomic_load(&handled_elsewhere) == 0);
	CHECK(!pthread_sigmask(SIG_SETMASK, NULL, &mask));
	CHECK(!sigismember(&mask, SIGUSR1));	/* ours is as it was */
}

static int polls;

static int poll_counts(void *arg)
{
	(void)arg;
	if (++polls == 3)
		atomic_store(&gate, 1);
	return 0;
}

static void helper_waits(void *arg, uint32_t worker)
{
	(void)arg;
	atomic_fetch_add(&ran, 1);
	while (worker && !atomic_load(&gate))
		sleep_ms(1);
	while (!worker && atomic_load(&ran) < 2)
		sleep_ms(1);
}

/* Its caller waits in its work until the helper has come. */
static void caller_polls_while_it_waits(void)
{
	atomic_store(&ran, 0);
	atomic_store(&gate, 0);
	polls = 0;
	CHECK(pf_crew_run(2, NULL, helper_waits, NULL, poll_counts, NULL, 1000) == 2);
	CHECK(polls >= 3);
}

static void nothing(void *arg, uint32_t worker)
{
	(void)worker;
	atomic_fetch_add((atomic_int *)arg, 1);
}

static void *second_caller(void *arg)
{
	atomic_int own = 0;

	for (int i = 0; i < 50; i++)
		pf_crew_run(3, NULL, nothing, &own, NULL, NULL, 0);
	*(int *)arg = atomic_load(&own);
	return NULL;
}

/* Many callers at once; none may lose work or wait for another's helpers. */
static void callers_do_not_meet(void)
{
	pthread_t threads[4];
	int counts[4] = { 0 };

	for (int i = 0; i < 4; i++)
		CHECK(!pthread_create(&threads[i], NULL, second_caller, &counts[i]));
	for (int i = 0; i < 4; i++) {
		pthread_join(threads[i], NULL);
		CHECK(counts[i] >= 50);
	}
}

static void *forker(void *arg)
{
	while (!atomic_load((atomic_int *)arg)) {
		pid_t child = fork();
		int status;

		if (!child) {
			/* The child's crew is its own: it must work, and be new. */
			atomic_int own = 0;
			int workers;

			if (!CHILD_MAY_HAVE_THREADS)
				_exit(0);
			workers = pf_crew_run(3, NULL, nothing, &own, NULL, NULL, 0);

			_exit(workers >= 1 && atomic_load(&own) == workers ? 0 : 1);
		}
		CHECK(child > 0);
		CHECK(waitpid(child, &status, 0) == child);
		CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 0);
	}
	return NULL;
}

static void forks_meanwhile(void)
{
	atomic_int end = 0, own = 0;
	pthread_t thread;

	CHECK(!pthread_create(&thread, NULL, forker, &end));
	for (int i = 0; i < 2000; i++)
		pf_crew_run(4, NULL, nothing, &own, NULL, NULL, 0);
	atomic_store(&end, 1);
	pthread_join(thread, NULL);
	CHECK(atomic_load(&own) >= 2000);
}

static atomic_int forked;

/* What a handler may find is a thread that has the crew's lock, or is in a fork itself. */
static void fork_on_signal(int number)
{
	int before = errno, status;
	pid_t child;

	(void)number;
	child = fork();
	if (!child)
		_exit(pf_crew_size() == 0 ? 0 : 1);
	if (child < 0 || waitpid(child, &status, 0) != child || status)
		_exit(3);
	atomic_fetch_add(&forked, 1);
	errno = before;
}

static void a_handler_forks(void)
{
	struct sigaction action = { .sa_handler = fork_on_signal, .sa_flags = SA_RESTART };
	struct itimerval often = { { 0, 300 }, { 0, 300 } }, never = { { 0, 0 }, { 0, 0 } };
	atomic_int own = 0;

	if (!CHILD_MAY_HAVE_THREADS)
		return;
	pf_crew_run(3, NULL, nothing, &own, NULL, NULL, 0);
	atomic_store(&forked, 0);
	CHECK(!sigaction(SIGPROF, &action, NULL));
	CHECK(!setitimer(ITIMER_PROF, &often, NULL));
	while (atomic_load(&forked) < 20)
		pf_crew_run(3, NULL, nothing, &own, NULL, NULL, 0);
	CHECK(!setitimer(ITIMER_PROF, &never, NULL));
	CHECK(!sigaction(SIGPROF, &(struct sigaction){ .sa_handler = SIG_IGN }, NULL));
}

static atomic_int waits;

static void caller_is_cancelled(void *arg, uint32_t worker)
{
	(void)arg;
	atomic_fetch_add(&ran, 1);
	if (worker) {
		while (!atomic_load(&gate))
			sleep_ms(1);
		atomic_fetch_add(&waits, 1);
		return;
	}
	while (atomic_load(&ran) < 2)
		sleep_ms(1);
	CHECK(!pthread_cancel(pthread_self()));
	sleep_ms(1);	/* where a thread is ended that may be */
	atomic_store(&gate, 1);
}

static void *cancelled_caller(void *arg)
{
	pf_crew_run(2, NULL, caller_is_cancelled, NULL, NULL, NULL, 0);
	atomic_fetch_add((atomic_int *)arg, 1);
	pthread_testcancel();
	return NULL;
}

/* A thread that is cancelled ends when its helpers are done with what is on its stack. */
static void cancelled_while_a_helper_works(void)
{
	atomic_int returned = 0;
	pthread_t thread;
	void *ended;

	if (!THREADS_MAY_BE_CANCELLED)
		return;
	atomic_store(&ran, 0);
	atomic_store(&gate, 0);
	CHECK(!pthread_create(&thread, NULL, cancelled_caller, &returned));
	CHECK(!pthread_join(thread, &ended));
	CHECK(ended == PTHREAD_CANCELED);
	CHECK(atomic_load(&returned) == 1 && atomic_load(&waits) == 1);
}

static void *keeps_working(void *arg)
{
	for (;;)
		pf_crew_run(3, NULL, nothing, arg, NULL, NULL, 0);
	return NULL;
}

/* The process ends while another thread has helpers, and makes new ones. */
static void exits_meanwhile(void)
{
	if (!CHILD_MAY_HAVE_THREADS)
		return;
	fflush(NULL);
	for (int i = 0; i < 10; i++) {
		pid_t child = fork();
		int status;

		if (!child) {
			pthread_t threads[2];
			static atomic_int own;

			alarm(600);
			for (int k = 0; k < 2; k++)
				CHECK(!pthread_create(&threads[k], NULL, keeps_working, &own));
			while (atomic_load(&own) < 3 * i)
				sched_yield();
			exit(0);
		}
		CHECK(child > 0);
		CHECK(waitpid(child, &status, 0) == child);
		CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 0);
	}
}

/* ---- A busy machine ---- */

static atomic_int spinning;
static atomic_ulong turns;

static void *spin(void *arg)
{
	cpu_set_t set;

	CPU_ZERO(&set);
	CPU_SET(*(int *)arg, &set);
	CHECK(!sched_setaffinity(0, sizeof(set), &set));
	while (atomic_load(&spinning))
		atomic_fetch_add_explicit(&turns, 1, memory_order_relaxed);
	return NULL;
}

/* A spinner for each CPU that we may use, up to 64, while what() runs. */
static void on_a_busy_machine(void (*what)(void))
{
	pthread_t threads[64];
	int numbers[64];
	cpu_set_t allowed;
	int n = 0;

	CHECK(!sched_getaffinity(0, sizeof(allowed), &allowed));
	atomic_store(&spinning, 1);
	for (int cpu = 0; cpu < CPU_SETSIZE && n < 64; cpu++) {
		if (!CPU_ISSET(cpu, &allowed))
			continue;
		numbers[n] = cpu;
		CHECK(!pthread_create(&threads[n], NULL, spin, &numbers[n]));
		n++;
	}
	what();
	atomic_store(&spinning, 0);
	while (n)
		pthread_join(threads[--n], NULL);
}

/* Not for sure: the machine may be so busy that the helper gets no CPU at all. */
static int all_two_have_begun(void)
{
	for (int i = 0; i < 2000 && atomic_load(&ran) < 2; i++)
		sleep_ms(1);
	return atomic_load(&ran) >= 2;
}

static void cpu_ms(long ms)
{
	struct timespec now, end;

	clock_gettime(CLOCK_THREAD_CPUTIME_ID, &end);
	end.tv_sec += (end.tv_nsec + ms * 1000000) / 1000000000;
	end.tv_nsec = (end.tv_nsec + ms * 1000000) % 1000000000;
	do
		clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
	while (now.tv_sec < end.tv_sec ||
	       (now.tv_sec == end.tv_sec && now.tv_nsec < end.tv_nsec));
}

static atomic_int helper_policy;
static atomic_int helper_policy_later;
static atomic_int helper_tid;

static void note_policy(void *arg, uint32_t worker)
{
	(void)arg;
	if (worker) {
		atomic_store(&helper_policy, sched_getscheduler(0));
		atomic_store(&helper_tid, gettid());
	}
	atomic_fetch_add(&ran, 1);
	for (int i = 0; i < 5000 && atomic_load(&ran) < 2; i++)
		sleep_ms(1);
}

static bool it_yielded_while_it_worked(void)
{
	/* Asleep it would only keep a process that is killed from ending. */
	CHECK(sched_getscheduler(atomic_load(&helper_tid)) == SCHED_OTHER);
	return atomic_load(&helper_policy) == (pf_crew_yields() ? SCHED_IDLE : SCHED_OTHER);
}

/* On a machine that others keep busy it may have been lifted before it has looked. */
static void helpers_yield_where_they_can_be_lifted(void)
{
	int times = 0;

	for (int i = 0; i < 1000 && times < 3; i++) {
		atomic_store(&ran, 0);
		CHECK(pf_crew_run(2, NULL, note_policy, NULL, NULL, NULL, 0) <= 2);
		if (atomic_load(&ran) == 2)
			times += it_yielded_while_it_worked();
	}
	CHECK(times == 3);
}

/* A helper that is in the middle of its work when the caller waits, and the CPUs are taken. */
static void helper_has_work(void *arg, uint32_t worker)
{
	(void)arg;
	atomic_fetch_add(&ran, 1);
	if (!worker) {
		all_two_have_begun();
		return;
	}
	cpu_ms(5);
	atomic_store(&helper_policy_later, sched_getscheduler(0));
}

static void a_helper_that_is_waited_for_is_lifted(void)
{
	for (int i = 0; i < 3; i++) {
		anew();
		atomic_store(&ran, 0);
		if (pf_crew_run(2, NULL, helper_has_work, NULL, NULL, NULL, 0) == 2)
			CHECK(atomic_load(&helper_policy_later) == SCHED_OTHER);
	}
}

/* The caller itself waits in its work for what a helper does, as for a lock in the kernel. */
static void caller_needs_helper(void *arg, uint32_t worker)
{
	(void)arg;
	atomic_fetch_add(&ran, 1);
	if (worker) {
		while (sched_getscheduler(0) == SCHED_IDLE)
			cpu_ms(1);
		atomic_store(&gate, 1);
		return;
	}
	if (!all_two_have_begun())
		return;
	for (int i = 0; i < 20000 && !atomic_load(&gate); i++)
		sleep_ms(1);
	CHECK(atomic_load(&gate));
}

static void a_starved_helper_is_lifted_while_the_caller_works(void)
{
	anew();
	atomic_store(&ran, 0);
	atomic_store(&gate, 0);
	pf_crew_run(2, NULL, caller_needs_helper, NULL, NULL, NULL, 0);
}

static sem_t doorbell;
static atomic_int naps;
static atomic_int wanted;

static void *sleeps(void *arg)
{
	struct sched_param none = { .sched_priority = 0 };

	sched_setscheduler(0, SCHED_IDLE, &none);
	atomic_store((atomic_int *)arg, thread_id());
	while (atomic_fetch_add(&naps, 1) >= 0) {
		while (sem_wait(&doorbell))
			;
		while (atomic_load(&wanted))
			;
	}
	return NULL;
}

/*
 * One CPU for both, which this thread does not give up: the other wants it from
 * the moment in which it is woken. Only the time can tell that it is starved.
 */
static void woken_is_not_starved(void)
{
	struct helper helper = { .tid = 0 };
	atomic_int tid = 0;
	cpu_set_t before, here;
	int starved = 0;

	CHECK(!sched_getaffinity(0, sizeof(before), &before));
	CPU_ZERO(&here);
	CPU_SET(sched_getcpu(), &here);
	CHECK(!sched_setaffinity(0, sizeof(here), &here));
	CHECK(!sem_init(&doorbell, 0, 0));
	CHECK(!pthread_create(&helper.thread, NULL, sleeps, &tid));
	CHECK(!pthread_getcpuclockid(helper.thread, &helper.clock));
	for (int i = 1; i < 20 && !starved; i++) {
		for (int k = 0; k < 20000 && atomic_load(&naps) < i; k++)
			sleep_ms(1);
		helper.tid = atomic_load(&tid);
		helper.jobs++;
		CHECK(!watch_starved(&helper));
		sleep_ms(5);
		atomic_store(&wanted, 1);
		sem_post(&doorbell);
		CHECK(!watch_starved(&helper));	/* it may well want a CPU now */
		for (int k = 0; k < 20 && !starved; k++) {
			cpu_ms(5);
			starved = watch_starved(&helper);
		}
		atomic_store(&wanted, 0);
	}
	CHECK(starved);
	atomic_store(&naps, -2000);
	sem_post(&doorbell);
	CHECK(!sched_setaffinity(0, sizeof(before), &before));
	CHECK(!pthread_join(helper.thread, NULL));
}

static atomic_int calls;
static atomic_int came;

static void called_again(void *arg, uint32_t worker)
{
	(void)arg;
	if (worker)
		atomic_fetch_add(&came, 1);
	while (worker && crew_go_on())
		cpu_ms(1);
	for (int i = 0; !worker && i < 20000; i++) {
		cpu_ms(1);
		CHECK(!crew_call_again(1 << 20));	/* not for so little */
		if (crew_call_again(1 << 30)) {
			atomic_fetch_add(&calls, 1);
			break;
		}
	}
}

/* Sent away, or not even invited, helpers are wanted again later, in the middle of a long job. */
static void missed_helpers_are_called_again(void)
{
	if (!pf_crew_yields())
		return;
	anew();
	atomic_store(&calls, 0);
	for (int i = 1; i <= 5; i++) {
		pf_crew_run(2, NULL, called_again, NULL, NULL, NULL, 0);
		CHECK(atomic_load(&calls) == i);
	}
	CHECK(!crew_call_again(1 << 30));	/* of no job */
}

/* Helpers that cannot yield, too, are left where they are for a while, having been starved. */
static void nobody_is_called_all_the_time(void)
{
	int i;

	anew();
	atomic_store(&came, 0);
	for (i = 1; i <= 40; i++) {
		pf_crew_run(2, NULL, called_again, NULL, NULL, NULL, 0);
		if (atomic_load(&came) < i)
			break;
	}
	CHECK(i <= 40);
}

static void busy_machine(void)
{
	/* Nobody may wait for a helper that did not begin; with luck one does. */
	for (int i = 0; i < 20; i++) {
		atomic_store(&ran, 0);
		CHECK(pf_crew_run(4, NULL, nothing, &ran, NULL, NULL, 0) == atomic_load(&ran));
	}
	a_helper_that_is_waited_for_is_lifted();
	a_starved_helper_is_lifted_while_the_caller_works();
	missed_helpers_are_called_again();
}

static void a_while(void *arg, uint32_t worker)
{
	if (worker) {
		atomic_store(&helper_policy, sched_getscheduler(0));
		atomic_store(&helper_tid, gettid());
	}
	atomic_fetch_add((atomic_int *)arg, 1);
	for (int i = 0; i < 20 && atomic_load((atomic_int *)arg) < 2; i++)
		sleep_ms(1);
}

/* Helpers are left asleep where they get no CPU, and come again later; the lifted ones, too. */
static void helpers_come_again(void)
{
	bool yielded = false;

	for (int i = 0; i < 1000 && !yielded; i++) {
		int workers;

		atomic_store(&ran, 0);
		workers = pf_crew_run(2, NULL, a_while, &ran, NULL, NULL, 0);
		CHECK(workers == atomic_load(&ran));
		yielded = workers == 2 && it_yielded_while_it_worked();
	}
	CHECK(yielded);
}

static atomic_int hogs;

/* Lets nobody else on a CPU, for as long as the kernel lets anybody do that: 0.95 s. */
static void *hog(void *arg)
{
	struct sched_param first = { .sched_priority = 1 };
	cpu_set_t set;

	CPU_ZERO(&set);
	CPU_SET(*(int *)arg, &set);
	if (sched_setaffinity(0, sizeof(set), &set) || sched_setscheduler(0, SCHED_FIFO, &first)) {
		atomic_store(&hogs, -1);
		return NULL;
	}
	atomic_store(&hogs, 1);
	while (atomic_load(&hogs) > 0)
		continue;
	return NULL;
}

static void caller_is_busy(void *arg, uint32_t worker)
{
	(void)arg;
	if (!worker)
		cpu_ms(12);	/* the time in which a helper should have come */
}

/* False: may not. To be let go in either case. */
static bool hog_cpu(pthread_t *thread, int32_t *cpu)
{
	atomic_store(&hogs, 0);
	CHECK(!pthread_create(thread, NULL, hog, cpu));
	while (!atomic_load(&hogs))
		sleep_ms(1);
	return atomic_load(&hogs) > 0;
}

static void let_go(pthread_t thread)
{
	atomic_store(&hogs, 0);
	pthread_join(thread, NULL);
}

/* With a CPU for this thread, and one for a helper. */
static void on_two_cpus(void (*what)(int32_t *cpus))
{
	cpu_set_t before, set;
	int32_t cpus[2];
	int cpu, n = 0;

	CHECK(!sched_getaffinity(0, sizeof(before), &before));
	for (cpu = 0; cpu < CPU_SETSIZE && n < 2; cpu++)
		if (CPU_ISSET(cpu, &before))
			cpus[n++] = cpu;
	anew();
	if (n < 2 || !pf_crew_yields())
		return;
	CPU_ZERO(&set);
	CPU_SET(cpus[0], &set);
	CHECK(!sched_setaffinity(0, sizeof(set), &set));
	what(cpus);
	CHECK(!sched_setaffinity(0, sizeof(before), &before));
}

/*
 * After two jobs whose helper got no CPU the caller goes on alone for a while,
 * 10 ms at first. Who is not invited is not pinned anew: that is how it is seen.
 */
static void callers_go_on_alone(int32_t *cpus)
{
	pthread_t thread;
	cpu_set_t set;
	int tries;

	atomic_store(&ran, 0);
	if (pf_crew_run(2, NULL, note_policy, NULL, NULL, NULL, 0) < 2)
		return;
	hog_cpu(&thread, &cpus[1]);
	for (tries = 0; atomic_load(&hogs) > 0 && tries < 20; tries++) {
		pf_crew_run(2, cpus, caller_is_busy, NULL, NULL, NULL, 0);
		pf_crew_run(2, NULL, nothing, &ran, NULL, NULL, 0);
		CHECK(!sched_getaffinity(atomic_load(&helper_tid), sizeof(set), &set));
		if (CPU_COUNT(&set) == 1)
			break;
	}
	CHECK(tries < 20);
	let_go(thread);
}

static atomic_ullong offered_at;
static atomic_int judged;

static void is_not_late(void *arg, uint32_t worker)
{
	bool prompt = now_us() - atomic_load(&offered_at) < 2000;

	(void)arg;
	if (worker && prompt) {
		CHECK(crew_go_on());
		atomic_fetch_add(&judged, 1);
	}
	atomic_fetch_add(&ran, 1);
	for (int i = 0; i < 50 && !worker && atomic_load(&ran) < 2; i++)
		sleep_ms(1);
}

/* That it waited for a CPU in vain, its job being taken back, does not make it late for the next. */
static void is_late_for_its_own_job_only(int32_t *cpus)
{
	pthread_t thread;

	for (int i = 0; i < 10 && !atomic_load(&judged); i++) {
		int workers;

		anew();
		for (int k = 0; k < 2; k++) {	/* a new one never is */
			atomic_store(&ran, 0);
			pf_crew_run(2, cpus, is_not_late, NULL, NULL, NULL, 0);
		}
		atomic_store(&judged, 0);
		hog_cpu(&thread, &cpus[1]);
		workers = pf_crew_run(2, cpus, caller_is_busy, NULL, NULL, NULL, 0);
		let_go(thread);
		sleep_ms(5);
		atomic_store(&ran, 0);
		atomic_store(&offered_at, now_us());
		if (workers == 1)
			pf_crew_run(2, cpus, is_not_late, NULL, NULL, NULL, 0);
		atomic_store(&offered_at, 0);
	}
}

static void uses_time(void *arg, uint32_t worker)
{
	(void)arg;
	(void)worker;
	atomic_fetch_add(&ran, 1);
	for (int i = 0; i < 5000 && atomic_load(&ran) < 2; i++)
		sleep_ms(1);
	cpu_ms(20);
}

static long process_ms(void)
{
	struct rusage usage;

	CHECK(!getrusage(RUSAGE_SELF, &usage));
	return (usage.ru_utime.tv_sec + usage.ru_stime.tv_sec) * 1000 +
	       (usage.ru_utime.tv_usec + usage.ru_stime.tv_usec) / 1000;
}

static void time_is_charged_to_the_process(void)
{
	long before = process_ms();

	CHECK(all_come(2, NULL, uses_time, NULL));
	CHECK(process_ms() - before >= 38);
}

/* The privileged become a user who may lift nobody: helpers at SCHED_IDLE would be stuck. */
static void another_user(void)
{
	struct rlimit none = { 0, 0 };
	pid_t child;
	int status;

	if (geteuid() || !CHILD_MAY_HAVE_THREADS)
		return;
	fflush(NULL);
	pf_crew_stop();
	child = fork();
	if (!child) {
		expected = 3;
		CHECK(all_come(3, NULL, count, &ran));
		CHECK(!setrlimit(RLIMIT_NICE, &none));
		CHECK(!setuid(65534));
		CHECK(!pf_crew_yields());
		CHECK(all_come(3, NULL, count, &ran));
		CHECK(pf_crew_size() == 2);
		helpers_yield_where_they_can_be_lifted();
		on_a_busy_machine(nobody_is_called_all_the_time);
		pf_crew_stop();
		CHECK(pf_crew_size() == 0);
		_exit(0);
	}
	CHECK(child > 0);
	CHECK(waitpid(child, &status, 0) == child);
	CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 0);
}

int main(void)
{
	alarm(600 * SLOWER);
	CHECK(pf_crew_run(0, NULL, nothing, &ran, NULL, NULL, 0) == -EINVAL);
	CHECK(pf_crew_run(PF_MAX_THREADS + 1, NULL, nothing, &ran, NULL, NULL, 0) == -EINVAL);
	atomic_store(&ran, 0);
	CHECK(pf_crew_run(1, NULL, nothing, &ran, NULL, NULL, 0) == 1);
	CHECK(pf_crew_size() == 0);	/* one thread needs no helper */
	everyone_works();
	anew();
	pinned_as_told();
	signals_stay_with_the_program();
	anew();
	caller_polls_while_it_waits();
	callers_do_not_meet();
	forks_meanwhile();
	a_handler_forks();
	anew();
	cancelled_while_a_helper_works();
	exits_meanwhile();
	anew();
	helpers_yield_where_they_can_be_lifted();
	woken_is_not_starved();
	anew();
	time_is_charged_to_the_process();
	another_user();
	on_a_busy_machine(busy_machine);
	on_two_cpus(callers_go_on_alone);
	on_two_cpus(is_late_for_its_own_job_only);
	helpers_come_again();
	pf_crew_stop();
	CHECK(pf_crew_size() == 0);
	puts("crew: ok");
	return 0;
}
