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

#define CHECK(condition)                                                             \
	do {                                                                         \
		if (!(condition)) {                                                  \
			fprintf(stderr, "%s:%d: not true: %s\n", __FILE__, __LINE__, \
				#condition);                                         \
			exit(1);                                                     \
		}                                                                    \
	} while (0)

#endif
