/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Inside the user engine: userfaultfd(2) as it needs it.
 *
 * All calls repeat what the kernel left unfinished; those that fill or empty
 * pages return the bytes that were done and write to error why no more were.
 */
#ifndef PAGEFERRY_USERFAULT_H
#define PAGEFERRY_USERFAULT_H

#include <stdbool.h>
#include <stdint.h>
#include <linux/userfaultfd.h>

/* UFFDIO_MOVE came with Linux 6.8, after the headers of some distributions. */
#ifndef UFFDIO_MOVE
#define UFFD_FEATURE_MOVE (1 << 16)
struct uffdio_move {
	__u64 dst;
	__u64 src;
	__u64 len;
	__u64 mode;
	__s64 move;
};
#define UFFDIO_MOVE _IOWR(UFFDIO, 0x05, struct uffdio_move)
#endif

#ifndef MREMAP_DONTUNMAP	/* Linux 5.7 */
#define MREMAP_DONTUNMAP 4
#endif

#ifndef UFFD_FEATURE_WP_UNPOPULATED	/* Linux 6.4 */
#define UFFD_FEATURE_WP_UNPOPULATED (1 << 13)
#endif

/* What the kernel offers, in features; 0, or -errno where it offers nothing. */
int userfault_probe(uint64_t *features);

/* A context with these features (UFFD_FEATURE_*), for kernel faults too. */
int userfault_open(uint64_t features);

/* mode: UFFDIO_REGISTER_MODE_*. */
int userfault_register(int fd, uint64_t start, uint64_t bytes, uint64_t mode);
int userfault_unregister(int fd, uint64_t start, uint64_t bytes);
int userfault_wake(int fd, uint64_t start, uint64_t bytes);

/* Write-protect, or with on false allow again (and wake). */
int userfault_protect(int fd, uint64_t start, uint64_t bytes, bool on);

/* Move pages from source to the missing pages at target, which fd watches. */
uint64_t userfault_move(int fd, uint64_t target, uint64_t source, uint64_t bytes, int *error);

/* The same with whatever pages there are; those that must not be moved stay. */
void userfault_move_some(int fd, uint64_t target, uint64_t source, uint64_t bytes, uint64_t page);

/* Fill the missing pages at target with new ones that hold what is at source. */
uint64_t userfault_copy(int fd, uint64_t target, uint64_t source, uint64_t bytes, int *error);

/* Does another thread wait, or is about to, for its message to be read? */
bool userfault_changing(int fd);

/* The next message, without waiting. False: there is none. */
bool userfault_next(int fd, struct uffd_msg *message);

#endif
