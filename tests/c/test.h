/* SPDX-License-Identifier: Apache-2.0 */
/* The least a C test needs: say what was expected, and where, and end with 1. */
#ifndef PAGEFERRY_TEST_H
#define PAGEFERRY_TEST_H

#include <stdio.h>
#include <stdlib.h>

#define CHECK(condition)                                                             \
	do {                                                                         \
		if (!(condition)) {                                                  \
			fprintf(stderr, "%s:%d: not true: %s\n", __FILE__, __LINE__, \
				#condition);                                         \
			exit(1);                                                     \
		}                                                                    \
	} while (0)

#endif
