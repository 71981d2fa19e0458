/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Inside the crew: what its files share, and the one question that an engine's
 * workers ask it.
 *
 * Helpers work at SCHED_IDLE and may be kept from a CPU for as long as others
 * want it. So a helper takes no lock that a caller needs: the two hand over by
 * the word helper->state alone. crew.lock is for callers and the watch.
 */
#ifndef PAGEFERRY_CREW_H
#define PAGEFERRY_CREW_H

#include <pthread.h>
#include <sched.h>
#include <stdbool.h>
#include <stdint.h>
#include <time.h>

#include "pageferry.h"

enum { CPU_SETS = 8192 / CPU_SETSIZE };	/* of all CPUs that Linux can have, one after the other */

enum helper_state {
	HELPER_IDLE,		/* waits for a job */
	HELPER_OFFERED,		/* has one, and has not begun: may be taken back */
	HELPER_WORKING,
	HELPER_DONE,		/* touches nothing of the job any more */
	HELPER_STOP,
};

/* One call of pf_crew_run(), on its caller's stack. */
struct job {
	void (*work)(void *arg, uint32_t worker);
	void *arg;
	int policy;		/* of a helper that has to be lifted */
	struct helper *invited;	/* the first of its helpers; NULL: none */
	uint64_t begun_us;
	uint64_t alone_until_us;	/* nobody was invited, as others had the CPUs; 0: not so */
};

/* The watch's look at a helper. */
struct helper_seen {
	uint32_t jobs;
	bool idle;		/* hardly ran since the look before, and wants a CPU */
	uint64_t cpu_ns;
	uint64_t at_ns;
	uint64_t wait_ns;	/* if so: that it has waited for CPUs in all */
	uint64_t turns;		/* ... and how often it got one */
};

struct helper {
	struct helper *next;	/* in the crew, under its lock */
	struct helper *beside;	/* in the same job, for its caller alone */
	pthread_t thread;
	clockid_t clock;	/* of its CPU time */
	int32_t tid;
	uint32_t state;		/* enum helper_state; a futex */
	struct job *job;	/* from here to pinned: written by the caller that has it */
	uint32_t worker;
	uint32_t jobs;		/* how many it has had */
	int32_t pinned;		/* to this CPU, -1: not */
	bool taken;		/* by a caller, under the crew's lock */
	bool yields;		/* works at SCHED_IDLE, unless lifted */
	bool detached;		/* ends without being joined, and frees itself */
	struct watch *watch;	/* to be told that it works; NULL: nobody lifts it */
	uint64_t offered_us;
	uint32_t lifted;	/* runs like any thread in this job */
	uint32_t starved;	/* others wanted its CPU in this job */
	struct helper_seen seen;	/* what the watch saw last */
	struct {		/* its own book: see crew_go_on() */
		bool late;	/* got its CPU too late for this job */
		bool known;	/* the next two; a new thread has run for 0 ns */
		uint64_t run_ns;
		uint64_t wait_ns;
		uint64_t looked_us;
		uint64_t rested_ns;	/* of waiting when the last job was done; 0: not known */
	} own;
};

/*
 * For a worker between two pieces: shall it claim another? Always yes for the
 * caller. A helper leaves when the watch had to lift it, when it had to wait for its
 * CPU for a quarter of the time, and, before its first piece, when it got there
 * late: others need the machine.
 */
bool crew_go_on(void);

/*
 * For the caller between two pieces, left bytes being unclaimed: shall it come back
 * from its work, and call pf_crew_run() again for the rest? Yes when its helpers
 * have all left, or when none was invited and the time for that is over: a CPU
 * that others wanted for a moment is free again later in a long job. Asked after
 * a piece, never before the first: a caller that came back each time with nothing
 * done would go round for ever. Helpers that come only now leave at once.
 */
bool crew_call_again(uint64_t left);

/* ---- helper.c ---- */

/* A thread with all signals blocked. False: the system has none to give. */
bool thread_create(pthread_t *thread, size_t stack, const char *name, void *(*main)(void *arg),
		   void *arg);

/* A new helper, asleep; NULL: the system has no thread to give. */
struct helper *helper_create(uint32_t number);

/* Hand a job to a helper that is idle and taken. */
void helper_offer(struct helper *helper, struct job *job, uint32_t worker);

/* It has had the time to begin, and has not. */
bool helper_never_came(struct helper *helper);

/* Others want its CPU: in this job it claims nothing more. */
void helper_starved(struct helper *helper);

/* True: it had not begun, and will not. */
bool helper_take_back(struct helper *helper);

/* Give it a CPU of its own, or with -1 those of the CPU_SETS sets. For a helper that is idle. */
void helper_pin(struct helper *helper, int32_t cpu, const cpu_set_t *anywhere);

/* Let it run like any thread, for this job. False: the kernel refuses. */
bool helper_lift(struct helper *helper, int policy);

/*
 * After its job: asleep it is in nobody's way, and a process whose threads are
 * all killed ends when each has had a CPU once more, which at SCHED_IDLE takes
 * seconds on a busy machine. False: the kernel refuses, it must be replaced.
 */
bool helper_rest(struct helper *helper);

/* Wait for the end of one that is idle and not in the crew any more. */
void helper_end(struct helper *helper);

/* The same without waiting. */
void helper_dismiss(struct helper *helper);

/*
 * May this thread lift others out of SCHED_IDLE? The kernel asks for what
 * lowering a nice value takes: CAP_SYS_NICE or RLIMIT_NICE.
 */
bool may_lift(void);

/* ---- watch.c: a thread that lifts helpers which are starved in the middle of a piece ---- */

struct watch;

/*
 * look() is called 5 ms after a helper has said that it works, and every 5 ms
 * from then on while it returns true. NULL: no thread to be had.
 */
struct watch *watch_start(bool (*look)(void));
void watch_helper(struct watch *watch);
void watch_stop(struct watch *watch);
void watch_forget(struct watch *watch);	/* in a child, where its thread is not */

/* Has a helper that works got no CPU since the last time this was asked? */
bool watch_starved(struct helper *helper);

#endif
