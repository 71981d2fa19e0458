// SPDX-License-Identifier: Apache-2.0
/*
 * The end of a mapping, which the kernel may refuse: where one would fall in two
 * and the process has as many as it may have (vm.max_map_count), or for want of
 * memory for its own notes. Nothing else is to be done with such addresses, so
 * their pages are given back and they are remembered, and unmapped the next time
 * that anything is. A thread may be interrupted here by a handler that comes here
 * as well: no lock, an entry belongs to who has set its start to BUSY.
 */
#include <errno.h>
#include <pthread.h>
#include <stdbool.h>
#include <sys/mman.h>

#include "calls.h"
#include "pageferry.h"

enum {
	INTERRUPTED = 3,
	ENTRIES = 256,
};

enum { FREE = 0, BUSY = 1 };	/* values of start that are none */

static struct kept {
	uint64_t start;
	uint64_t bytes;
} kept[ENTRIES];
static uint64_t kept_bytes;

static bool claim(struct kept *entry, uint64_t value)
{
	return __atomic_compare_exchange_n(&entry->start, &value, BUSY, false, __ATOMIC_ACQUIRE,
					   __ATOMIC_RELAXED);
}

/* What there is no entry for stays for good, and is counted as well. */
static void keep(uint64_t start, uint64_t bytes)
{
	uint32_t i;

	__atomic_fetch_add(&kept_bytes, bytes, __ATOMIC_RELAXED);
	for (i = 0; i < ENTRIES; i++) {
		if (!claim(&kept[i], FREE))
			continue;
		kept[i].bytes = bytes;
		__atomic_store_n(&kept[i].start, start, __ATOMIC_RELEASE);
		return;
	}
}

static void try_again(void)
{
	uint32_t i;

	for (i = 0; i < ENTRIES && __atomic_load_n(&kept_bytes, __ATOMIC_RELAXED); i++) {
		uint64_t start = __atomic_load_n(&kept[i].start, __ATOMIC_RELAXED);

		if (start <= BUSY || !claim(&kept[i], start))
			continue;
		if (munmap((void *)(uintptr_t)start, kept[i].bytes)) {
			__atomic_store_n(&kept[i].start, start, __ATOMIC_RELEASE);
			return;
		}
		__atomic_fetch_sub(&kept_bytes, kept[i].bytes, __ATOMIC_RELAXED);
		__atomic_store_n(&kept[i].start, FREE, __ATOMIC_RELEASE);
	}
}

/* A child has no mappings that were marked MADV_DONTFORK: others may be there by now. */
static void forget(void)
{
	uint32_t i;

	for (i = 0; i < ENTRIES; i++)
		__atomic_store_n(&kept[i].start, FREE, __ATOMIC_RELAXED);
	__atomic_store_n(&kept_bytes, 0, __ATOMIC_RELAXED);
}

__attribute__((constructor)) static void init(void)
{
	pthread_atfork(NULL, NULL, forget);
}

void unmap_memory(void *memory, uint64_t bytes)
{
	int before = errno;
	int tries = 0;

	if (!memory || !bytes)
		return;
	try_again();
	while (munmap(memory, bytes)) {
		if (errno == EINTR && ++tries < INTERRUPTED)
			continue;
		madvise(memory, bytes, MADV_DONTNEED);
		keep((uintptr_t)memory, bytes);
		break;
	}
	errno = before;
}

uint64_t pf_kept_bytes(void)
{
	return __atomic_load_n(&kept_bytes, __ATOMIC_RELAXED);
}
