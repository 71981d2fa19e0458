// SPDX-License-Identifier: Apache-2.0
/*
 * A program under a seccomp filter that refuses all that moving pages takes: it
 * gets the filter's EPERM, with and without the preload library.
 */
#include <errno.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <stddef.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "test.h"

enum { PAGES = 4096, MOVE = 2, BIND = 2 };

#define REFUSE(number)                                                                        \
	BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, number, 0, 1),                                    \
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | EPERM)

int main(void)
{
	struct sock_filter filter[] = {
		BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
		REFUSE(SYS_move_pages),
		REFUSE(SYS_mbind),
		REFUSE(SYS_migrate_pages),
		REFUSE(SYS_process_vm_readv),
		REFUSE(SYS_process_vm_writev),
		REFUSE(SYS_openat),
		REFUSE(SYS_get_mempolicy),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
	};
	struct sock_fprog program = { sizeof(filter) / sizeof(*filter), filter };
	static void *pages[PAGES];
	static int nodes[PAGES], status[PAGES];
	size_t size = (size_t)PAGES * 4096;
	char *memory = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS,
			    -1, 0);
	unsigned long mask = 1;
	int i;

	CHECK(memory != MAP_FAILED);
	for (i = 0; i < PAGES; i++)
		pages[i] = memory + i * 4096l;
	CHECK(!prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0));
	CHECK(!prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program));
	CHECK(syscall(SYS_move_pages, 0, PAGES, pages, nodes, status, MOVE) == -1 &&
	      errno == EPERM);
	CHECK(syscall(SYS_mbind, memory, size, BIND, &mask, 65, MOVE) == -1 && errno == EPERM);
	CHECK(syscall(SYS_migrate_pages, 0, 65, &mask, &mask) == -1 && errno == EPERM);
	puts("preload refused: ok");
	return 0;
}
