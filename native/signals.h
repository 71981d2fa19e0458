/* SPDX-License-Identifier: Apache-2.0 */
/* No signal for this thread: a handler might wait for what the thread has in hand. */
#ifndef PAGEFERRY_SIGNALS_H
#define PAGEFERRY_SIGNALS_H

#include <pthread.h>
#include <signal.h>

static inline void signals_block(sigset_t *before)
{
	sigset_t all;

	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, before);
}

static inline void signals_restore(const sigset_t *before)
{
	pthread_sigmask(SIG_SETMASK, before, NULL);
}

/* For a lock that a fork takes, too: a handler that forks would wait for its own thread. */
static inline void quiet_lock(pthread_mutex_t *lock, sigset_t *before)
{
	signals_block(before);
	pthread_mutex_lock(lock);
}

static inline void quiet_unlock(pthread_mutex_t *lock, const sigset_t *before)
{
	pthread_mutex_unlock(lock);
	signals_restore(before);
}

#endif
