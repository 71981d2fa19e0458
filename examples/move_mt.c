// SPDX-License-Identifier: Apache-2.0
/*
 * MPOL_MF_MOVE_MT in a program: move an array to a node with several threads.
 *
 *	cc -I native/include examples/move_mt.c -o move_mt
 *	pageferry run ./move_mt 1
 *
 * On a stock kernel the flag works in programs that pageferry run starts; the
 * program falls back to one thread where nobody knows it.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "pageferry.h"

enum { MOVE = 1 << 1, PAGES = 16384 };	/* MPOL_MF_MOVE of <numaif.h> */

static void *pages[PAGES];
static int nodes[PAGES];
static int status[PAGES];

static long move(int flags)
{
	return syscall(SYS_move_pages, 0, (unsigned long)PAGES, pages, nodes, status, flags);
}

int main(int argc, char **argv)
{
	size_t page = (size_t)sysconf(_SC_PAGESIZE);
	int node = argc > 1 ? atoi(argv[1]) : 0;
	const char *how = "several threads";
	int there = 0;
	char *memory;
	long result;
	int i;

	memory = mmap(NULL, PAGES * page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS,
		      -1, 0);
	/* Of a huge page only one address would be listed. */
	if (memory == MAP_FAILED || madvise(memory, PAGES * page, MADV_NOHUGEPAGE))
		return 1;
	memset(memory, 1, PAGES * page);
	for (i = 0; i < PAGES; i++) {
		pages[i] = memory + (size_t)i * page;
		nodes[i] = node;
	}
	result = move(MOVE | PF_MPOL_MF_MOVE_MT);
	if (result < 0 && errno == EINVAL) {
		how = "one thread";
		result = move(MOVE);
	}
	if (result < 0) {
		perror("move_pages");
		return 1;
	}
	/* Above zero it is the number of pages that are not moved. */
	for (i = 0; i < PAGES; i++)
		there += status[i] == node;
	printf("%d of %d pages on node %d, by %s\n", there, PAGES, node, how);
	return result ? 1 : 0;
}
