// SPDX-License-Identifier: Apache-2.0
#include <errno.h>
#include <sys/mman.h>
#include <sys/uio.h>
#include <unistd.h>

#include "calls.h"
#include "pageferry.h"

/* Since Linux 5.17; the headers we build against may be older. */
enum { SYS_HOME_NODE = 450 };

enum { MOVE_FLAG = 1 << 1 };

int64_t pf_sys_move_pages(int32_t pid, uint64_t count, const uint64_t *pages,
			  const int32_t *nodes, int32_t *status, int32_t flags)
{
	return raw_move_pages(pid, count, pages, nodes, status, flags);
}

int64_t pf_sys_mbind(uint64_t start, uint64_t length, int32_t mode, const uint64_t *mask,
		     uint64_t maxnode, uint32_t flags)
{
	return raw_call(SYS_mbind, (long)start, (long)length, mode, (long)mask, (long)maxnode,
			(long)flags);
}

int64_t pf_sys_migrate_pages(int32_t pid, uint64_t maxnode, const uint64_t *from,
			     const uint64_t *to)
{
	return raw_call(SYS_migrate_pages, pid, (long)maxnode, (long)from, (long)to, 0, 0);
}

int64_t pf_sys_get_mempolicy(int32_t *mode, uint64_t *mask, uint64_t maxnode,
			     uint64_t address, uint64_t flags)
{
	return raw_call(SYS_get_mempolicy, (long)mode, (long)mask, (long)maxnode, (long)address,
			(long)flags, 0);
}

int64_t pf_sys_set_mempolicy(int32_t mode, const uint64_t *mask, uint64_t maxnode)
{
	return raw_call(SYS_set_mempolicy, mode, (long)mask, (long)maxnode, 0, 0, 0);
}

int64_t pf_sys_set_mempolicy_home_node(uint64_t start, uint64_t length, uint64_t home_node,
				       uint64_t flags)
{
	return raw_call(SYS_HOME_NODE, (long)start, (long)length, (long)home_node, (long)flags,
			0, 0);
}

int pf_kernel_has_mt(void)
{
	/* No page is named: only the flags are looked at. */
	return raw_move_pages(0, 0, NULL, NULL, NULL, MOVE_FLAG | PF_MPOL_MF_MOVE_MT) == 0;
}

static int user_copy(long number, const void *ours, const void *theirs, uint64_t bytes)
{
	struct iovec near = { .iov_base = (void *)ours, .iov_len = bytes };
	struct iovec far = { .iov_base = (void *)theirs, .iov_len = bytes };
	long pid = raw_call(SYS_getpid, 0, 0, 0, 0, 0, 0);
	long result = raw_call(number, pid, (long)&near, 1, (long)&far, 1, 0);

	if (result < 0)
		return (int)result;
	return (uint64_t)result == bytes ? 0 : -EFAULT;
}

int user_read(void *to, const void *from, uint64_t bytes)
{
	return user_copy(SYS_process_vm_readv, to, from, bytes);
}

int user_read_ends(uint64_t ends[2], const uint64_t *array, uint64_t count)
{
	struct iovec near = { .iov_base = ends, .iov_len = 2 * sizeof(*ends) };
	struct iovec far[2] = {
		{ .iov_base = (void *)array, .iov_len = sizeof(*ends) },
		{ .iov_base = (void *)(array + count - 1), .iov_len = sizeof(*ends) },
	};
	long pid = raw_call(SYS_getpid, 0, 0, 0, 0, 0, 0);
	long result = raw_call(SYS_process_vm_readv, pid, (long)&near, 1, (long)far, 2, 0);

	if (result < 0)
		return (int)result;
	return (uint64_t)result == near.iov_len ? 0 : -EFAULT;
}

int user_write(void *to, const void *from, uint64_t bytes)
{
	return user_copy(SYS_process_vm_writev, from, to, bytes);
}

void *map_memory(uint64_t bytes)
{
	void *memory = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS,
			    -1, 0);

	return memory == MAP_FAILED ? NULL : memory;
}
