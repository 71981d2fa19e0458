/* SPDX-License-Identifier: Apache-2.0 */
/* Inside the core: pages that are to come from one node. */
#ifndef PAGEFERRY_POPULATE_H
#define PAGEFERRY_POPULATE_H

#include <stddef.h>
#include <stdint.h>

/* The size of a base page as a shift. */
uint32_t base_page_shift(void);

/* pf_map() of anything but hugetlb pages, for those who need no reason: NULL is none. */
void *map_aligned(size_t bytes, uint32_t shift);

#endif
