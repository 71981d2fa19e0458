/* SPDX-License-Identifier: Apache-2.0 */
/* Inside the core: address space for pages that are to come from one node. */
#ifndef PAGEFERRY_POPULATE_H
#define PAGEFERRY_POPULATE_H

#include <stddef.h>
#include <stdint.h>

/* The size of a base page as a shift. */
uint32_t base_page_shift(void);

/*
 * Private anonymous address space, nothing of it touched, aligned to 1 << shift.
 * NULL: none to be had. The caller owns it and ends it with munmap().
 */
void *map_aligned(size_t bytes, uint32_t shift);

#endif
