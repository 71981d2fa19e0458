// SPDX-License-Identifier: Apache-2.0
/* The memory policy of a thread while it moves pages. */
#include <errno.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "user_run.h"

enum {
	MPOL_DEFAULT = 0,
	MPOL_PREFERRED = 1,
	MPOL_F_ADDR = 2,
};

void prefer_target(struct policy *before, int32_t node)
{
	unsigned long mask[NODE_LONGS] = { 0 };
	const int bits = 8 * sizeof(unsigned long);

	before->known = !syscall(SYS_get_mempolicy, &before->mode, before->mask,
				 (unsigned long)NODE_BITS + 1, NULL, 0ul);
	if (!before->known)
		return;
	mask[node / bits] = 1ul << node % bits;
	if (syscall(SYS_set_mempolicy, MPOL_PREFERRED, mask, (unsigned long)NODE_BITS + 1))
		before->known = false;
}

int prefer_as_before(const struct policy *before)
{
	const struct timespec pause = { .tv_nsec = 1000000 };
	int error = 0;
	int tries;

	for (tries = 0; before->known && tries < PIECE_PATIENCE; tries++) {
		if (!syscall(SYS_set_mempolicy, before->mode,
			     before->mode == MPOL_DEFAULT ? NULL : before->mask,
			     (unsigned long)NODE_BITS + 1))
			return 0;
		error = -errno;
		if (error != -ENOMEM)
			break;
		nanosleep(&pause, NULL);
	}
	/* This one takes no memory. Better than to prefer the target from now on. */
	if (error && !syscall(SYS_set_mempolicy, MPOL_DEFAULT, NULL, 0ul) &&
	    before->mode == MPOL_DEFAULT)
		error = 0;
	return error;
}

bool thread_decides(uint64_t address)
{
	int mode = -1;

	return !syscall(SYS_get_mempolicy, &mode, NULL, 0ul, address, (unsigned long)MPOL_F_ADDR) &&
	       mode == MPOL_DEFAULT;
}
