// SPDX-License-Identifier: Apache-2.0
/* What the kernel lets the user engine do, found out by trying. */
#include <sys/mman.h>
#include <unistd.h>

#include "calls.h"
#include "user_run.h"
#include "userfault.h"

static bool has_remap(void)
{
	long page = sysconf(_SC_PAGESIZE);
	void *memory = mmap(NULL, (size_t)page, PROT_READ | PROT_WRITE,
			    MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	void *moved;

	if (memory == MAP_FAILED)
		return false;
	/* The kernel looks at the address also without MREMAP_FIXED. */
	moved = mremap(memory, (size_t)page, (size_t)page, MREMAP_MAYMOVE | MREMAP_DONTUNMAP, NULL);
	unmap_memory(memory, (uint64_t)page);
	if (moved == MAP_FAILED)
		return false;
	unmap_memory(moved, (uint64_t)page);
	return true;
}

/* The kernel looks at the advice first; none is given for no memory. */
static bool has_collapse(void)
{
	return !madvise(NULL, 0, MADV_COLLAPSE);
}

int64_t pf_user_features(void)
{
	uint64_t offered = 0;
	int error = userfault_probe(&offered);
	int64_t features = PF_USER_HAS_FAULTS;

	if (error)
		return error;
	if (offered & UFFD_FEATURE_MOVE)
		features |= PF_USER_HAS_MOVE;
	if ((offered & UFFD_FEATURE_EVENT_REMAP) && (offered & UFFD_FEATURE_EVENT_REMOVE))
		features |= PF_USER_HAS_EVENTS;
	if (offered & UFFD_FEATURE_PAGEFAULT_FLAG_WP)
		features |= PF_USER_HAS_PROTECT;
	if (offered & UFFD_FEATURE_WP_UNPOPULATED)
		features |= PF_USER_HAS_PROTECT_ABSENT;
	if (has_remap())
		features |= PF_USER_HAS_REMAP;
	if (has_collapse())
		features |= PF_USER_HAS_COLLAPSE;
	return features;
}

uint32_t user_needs(uint32_t way)
{
	switch (way) {
	case PF_USER_CHECKED:
		return PF_USER_HAS_MOVE | PF_USER_HAS_EVENTS;
	case PF_USER_HOLD:
		return PF_USER_HAS_REMAP;
	default:
		return PF_USER_HAS_REMAP | PF_USER_HAS_PROTECT;
	}
}
