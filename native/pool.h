/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Inside the core: the warm pool, pages populated ahead for whoever is to copy
 * into them. What it may hold is set with pf_pool_reserve(); see pageferry.h.
 *
 * All functions may be called from any thread; none of them allocates memory or
 * touches a page, so they may be called while a range is detached. They hold the
 * pool's lock for a look at a table; munmap() comes after it.
 */
#ifndef PAGEFERRY_POOL_H
#define PAGEFERRY_POOL_H

#include <stddef.h>
#include <stdint.h>

/*
 * A populated private anonymous mapping of exactly bytes (whole pages), in pages
 * of 1 << shift that are on the node, aligned to that size. The caller owns it
 * from then on. NULL: the pool has no such piece; ask for less, or do without.
 *
 * The content is undefined: old data of this process. The mapping is readable
 * and writable and in no userfaultfd, prefers the node (MPOL_PREFERRED), is
 * MADV_DONTFORK, and MADV_HUGEPAGE or MADV_NOHUGEPAGE as shift says. It may be
 * a part of a larger mapping. Whoever puts it in another mapping's place with
 * mremap() brings all of this along and has to undo it; UFFDIO_MOVE moves the
 * pages only.
 */
void *pool_take(int32_t node, uint32_t shift, size_t bytes);

/*
 * The pool owns the mapping from here on: kept, up to what was reserved for
 * that node and size, else unmapped, in whole pages. It must be one or more
 * adjacent private anonymous mappings, readable and writable, in no userfaultfd,
 * every page present, of that size and on that node (the pool does not look).
 * An empty hole is never given: munmap() it.
 */
void pool_give(int32_t node, uint32_t shift, void *address, size_t bytes);

#endif
