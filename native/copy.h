/* SPDX-License-Identifier: Apache-2.0 */
/* The ways to copy, between the files of the copy core. */
#ifndef PAGEFERRY_COPY_H
#define PAGEFERRY_COPY_H

#include <stdbool.h>
#include <stdint.h>

enum { PF_LINE = 64 };

/*
 * Copy whole lines: dst is a multiple of PF_LINE, bytes is one too, src is
 * anywhere. Until pf_copy_fence() later stores may pass those of the methods
 * from PF_COPY_SSE2 on.
 */
typedef void pf_copy_lines(unsigned char *dst, const unsigned char *src, uint64_t bytes);

/* The function of a method that is particular to a CPU; NULL when this one lacks it. */
pf_copy_lines *pf_copy_arch(uint32_t method);

void pf_copy_fence(void);

/* Write lines back and drop them from all caches; false where programs cannot. */
bool pf_copy_evict(const unsigned char *lines, uint64_t bytes);

/*
 * Copying memory that others write meanwhile is what these functions are for:
 * each word arrives as it was at some moment. The thread sanitizer would call
 * that a race, and it is one, so it is told not to look here and only here.
 */
#define PF_RACY __attribute__((no_sanitize("thread")))

#endif /* PAGEFERRY_COPY_H */
