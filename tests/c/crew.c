// SPDX-License-Identifier: Apache-2.0
/* The crew: everyone works, pinned as told, kept, revoked when starved, fork-safe, gone. */
#include <errno.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdint.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "pageferry.h"
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

static void everyone_works(void)
{
	expected = 4;
	atomic_store(&ran, 0);
	CHECK(pf_crew_run(4, NULL, count, &ran, NULL, NULL, 0) == 4);
	CHECK(atomic_load(&ran) == 4);
	CHECK(pf_crew_size() == 3);	/* the caller is one of the four */
	atomic_store(&ran, 0);
	CHECK(pf_crew_run(4, NULL, count, &ran, NULL, NULL, 0) == 4);
	CHECK(pf_crew_size() == 3);	/* kept, not made anew */
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
	atomic_store(&ran, 0);
	CHECK(pf_crew_run(2, wanted, note_cpu, seen, NULL, NULL, 0) == 2);
	CHECK(seen[1] == wanted[0] || seen[1] == wanted[1]);
	/* An impossible CPU is no reason to fail: the helper runs where it may. */
	wanted[0] = wanted[1] = 1000;
	expected = 2;
	atomic_store(&ran, 0);
	CHECK(pf_crew_run(2, wanted, count, &ran, NULL, NULL, 0) == 2);
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
			int workers = pf_crew_run(3, NULL, nothing, &own, NULL, NULL, 0);

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

int main(void)
{
	alarm(60);
	CHECK(pf_crew_run(0, NULL, nothing, &ran, NULL, NULL, 0) == -EINVAL);
	CHECK(pf_crew_run(PF_MAX_THREADS + 1, NULL, nothing, &ran, NULL, NULL, 0) == -EINVAL);
	atomic_store(&ran, 0);
	CHECK(pf_crew_run(1, NULL, nothing, &ran, NULL, NULL, 0) == 1);
	CHECK(pf_crew_size() == 0);	/* one thread needs no helper */
	everyone_works();
	pinned_as_told();
	signals_stay_with_the_program();
	caller_polls_while_it_waits();
	callers_do_not_meet();
	forks_meanwhile();
	pf_crew_stop();
	CHECK(pf_crew_size() == 0);
	puts("crew: ok");
	return 0;
}
