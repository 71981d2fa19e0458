/* SPDX-License-Identifier: Apache-2.0 */
/* Inside the core: what the kernel says of the mapping at one address. Allocates nothing. */
#ifndef PAGEFERRY_MAPPING_H
#define PAGEFERRY_MAPPING_H

#include <stdint.h>
#include <sys/ioctl.h>

/* PROCMAP_QUERY of <linux/fs.h>, which is newer than some kernels' headers. */
#define MAPPING_QUERY _IOC(_IOC_READ | _IOC_WRITE, 'f', 17, sizeof(struct mapping_query))

struct mapping_query {
	uint64_t size;
	uint64_t flags;		/* 0: the mapping that the address is in */
	uint64_t address;
	uint64_t start;		/* from here on written by the kernel */
	uint64_t end;
	uint64_t mapping_flags;
	uint64_t page_bytes;
	uint64_t offset;
	uint64_t inode;
	uint32_t major;
	uint32_t minor;
	uint32_t name_bytes;	/* 0: not asked for */
	uint32_t build_id_bytes;
	uint64_t name;
	uint64_t build_id;
};

struct mapping {
	uint64_t start;
	uint64_t end;
	int protection;		/* PROT_* */
};

/* 0; -ENOENT: nothing is mapped there; or another -errno. */
int mapping_at(uint64_t address, struct mapping *mapping);

/*
 * Where the mapping ends that an address is in, by an open /proc/self/maps (Linux 6.11). 0: nothing
 * is mapped there, or the kernel does not say.
 */
uint64_t mapping_end(int maps, uint64_t address);

#endif
