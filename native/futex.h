/* SPDX-License-Identifier: Apache-2.0 */
/* Waiting for a word in memory to change: futex(2), private to the process. */
#ifndef PAGEFERRY_FUTEX_H
#define PAGEFERRY_FUTEX_H

#include <linux/futex.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

/* Sleep while *word is value: until a wake, a signal, or us have passed (0: no limit). */
static inline void futex_wait(uint32_t *word, uint32_t value, uint64_t us)
{
	struct timespec time = {
		.tv_sec = (time_t)(us / 1000000),
		.tv_nsec = (long)(us % 1000000) * 1000,
	};

	syscall(SYS_futex, word, FUTEX_WAIT_PRIVATE, value, us ? &time : NULL, NULL, 0);
}

static inline void futex_wake(uint32_t *word)
{
	syscall(SYS_futex, word, FUTEX_WAKE_PRIVATE, 1, NULL, NULL, 0);
}

#endif
