/* SPDX-License-Identifier: Apache-2.0 */
/* Inside the user engine: what /proc/self/maps says of one address. Allocates nothing. */
#ifndef PAGEFERRY_MAPPING_H
#define PAGEFERRY_MAPPING_H

#include <stdint.h>

struct mapping {
	uint64_t start;
	uint64_t end;
	int protection;		/* PROT_* */
};

/* 0; -ENOENT: nothing is mapped there; or another -errno. */
int mapping_at(uint64_t address, struct mapping *mapping);

#endif
