/* SPDX-License-Identifier: Apache-2.0 */
#ifndef PAGEFERRY_NODES_H
#define PAGEFERRY_NODES_H

#include <stdio.h>

/* The nodes that have memory, at most max; node 0 where the kernel tells nothing. */
static inline int memory_nodes(int *nodes, int max)
{
	int count = 0;

	for (int node = 0; node < 64 && count < max; node++) {
		char path[80], line[128];
		long kib = 0;
		FILE *file;

		snprintf(path, sizeof(path), "/sys/devices/system/node/node%d/meminfo", node);
		file = fopen(path, "r");
		if (!file)
			continue;
		if (fgets(line, sizeof(line), file))
			sscanf(line, "Node %*d MemTotal: %ld", &kib);
		fclose(file);
		if (kib)
			nodes[count++] = node;
	}
	if (!count)
		nodes[count++] = 0;
	return count;
}

#endif
