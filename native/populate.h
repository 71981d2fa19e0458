/* SPDX-License-Identifier: Apache-2.0 */
/* Inside the core: pages that are to come from one node. */
#ifndef PAGEFERRY_POPULATE_H
#define PAGEFERRY_POPULATE_H

#include <stdint.h>

/* The size of a base page as a shift. */
uint32_t base_page_shift(void);

#endif
