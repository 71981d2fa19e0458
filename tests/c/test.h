/* SPDX-License-Identifier: Apache-2.0 */
/* The least a C test needs: say what was expected, and where, and end with 1. */
#ifndef PAGEFERRY_TEST_H
#define PAGEFERRY_TEST_H

#include <stdio.h>
#include <stdlib.h>

/*
 * A child of a process with threads may start its own: Linux and the C library allow it, but the
 * thread sanitizer and QEMU's user emulation lose their way there.
 */
#if defined(__SANITIZE_THREAD__) || defined(EMULATED)
enum { CHILD_MAY_HAVE_THREADS = 0 };
#else
enum { CHILD_MAY_HAVE_THREADS = 1 };
#endif

/*
 * The thread sanitizer looks at every access: tests that repeat what they do until something has
 * been met do it so much less often there, and may take so much longer.
 */
#if defined(__SANITIZE_THREAD__)
enum { SLOWER = 8 };
#else
enum { SLOWER = 1 };
#endif

/* What test-arch runs is static, and the C library cannot end a thread without libgcc_s.so. */
#if defined(EMULATED)
enum { THREADS_MAY_BE_CANCELLED = 0 };
#else
enum { THREADS_MAY_BE_CANCELLED = 1 };
#endif

/* Out of a handler that the thread sanitizer calls there is no way but to return. */
enum { HANDLERS_MAY_JUMP = SLOWER == 1 };

/* For loops over millions of bytes that no other thread has at that time. */
#define NO_RACE_HERE __attribute__((no_sanitize("thread")))

#define CHECK(condition)                                                             \
	do {                                                                         \
		if (!(condition)) {                                                  \
			fprintf(stderr, "%s:%d: not true: %s\n", __FILE__, __LINE__, \
				#condition);                                         \
			exit(1);                                                     \
		}                                                                    \
	} while (0)

#endif
