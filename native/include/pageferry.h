/* SPDX-License-Identifier: Apache-2.0 */
/*
 * pageferry.h - the one contract between the C core, C programs and Python.
 *
 * The core moves memory pages between NUMA nodes with several threads on an
 * unmodified Linux kernel. It reads no configuration and nothing under /sys:
 * the caller surveys, plans, and hands over sizes, CPU lists and flags.
 *
 * Conventions. Functions return 0 or a count on success and -errno on failure.
 * Sizes are bytes unless a name says otherwise, times are microseconds. Every
 * structure belongs to the caller, who zeroes it first; the core keeps no
 * pointer after a call returns. All functions may be called from any thread.
 * Errors of single pages are counted in the result and do not fail the call.
 */
#ifndef PAGEFERRY_H
#define PAGEFERRY_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#if defined(__GNUC__)
#define PF_API __attribute__((visibility("default")))
#else
#define PF_API
#endif

/* cffi: begin (the Python binding is generated from here to "cffi: end") */

enum {
	PF_MAX_THREADS = 1024,
	PF_MAX_NODES = 1024,
	PF_NODE_WORDS = 16,	/* 64-bit words of a mask of PF_MAX_NODES nodes */
	PF_MAX_ERRNO = 256,
	PF_MAX_FAILURES = 32,	/* single failures remembered with their address */
};

/*
 * The status of a page that no kernel has answered for. The kernel writes a
 * node (>= 0) or an errno (> -4096), so this can only be our own mark.
 */
enum { PF_STATUS_UNKNOWN = -2147483647 };

/* ---- Pages ------------------------------------------------------------ */

enum pf_page_kind {
	PF_PAGE_BASE = 0,	/* one page of the base size, 4 KiB on x86 */
	PF_PAGE_THP = 1,	/* transparent huge page, mapped as one entry */
	PF_PAGE_HUGETLB = 2,
	PF_PAGE_KINDS = 3,
};

/* Adjacent present pages of one size: the unit that survey hands to an engine. */
struct pf_extent {
	uint64_t start;		/* address of the first page */
	uint64_t pages;		/* count of pages of this size */
	uint32_t shift;		/* page size is 1 << shift */
	uint32_t kind;		/* enum pf_page_kind */
};

/* ---- Survey: which pages are present, and of what size ------------------ */

enum pf_survey_method {
	PF_SURVEY_SCAN = 1,	/* PAGEMAP_SCAN, Linux 6.7 and later */
	PF_SURVEY_PAGEMAP = 2,	/* pagemap entries; huge pages by kpageflags (root) */
	PF_SURVEY_QUERY = 3,	/* move_pages(2) without nodes: no /proc needed */
};

enum {
	/* Huge pages cut by an end of the range: take them whole, else leave them. */
	PF_SURVEY_TOUCHED = 1,
	/*
	 * PF_SURVEY_PAGEMAP: every whole, present, aligned huge block is one huge
	 * page; the caller knows that from smaps.
	 */
	PF_SURVEY_DENSE = 2,
};

struct pf_survey {
	/* set by the caller */
	uint64_t start;		/* whole base pages; the call advances it */
	uint64_t end;
	int32_t pid;		/* 0: this process (PF_SURVEY_QUERY and PF_SURVEY_DENSE) */
	int32_t pagemap_fd;	/* /proc/PID/pagemap, not for PF_SURVEY_QUERY */
	int32_t kpageflags_fd;	/* /proc/kpageflags, or -1 */
	uint32_t method;	/* enum pf_survey_method */
	uint32_t flags;
	uint32_t huge_shift;	/* size of what the kernel calls huge here */
	uint32_t huge_kind;	/* PF_PAGE_THP, or PF_PAGE_HUGETLB in such a mapping */
	/* added up by the core, in bytes */
	uint64_t bytes_present;
	uint64_t bytes_zero;	/* the shared zero page: nothing there to move */
	uint64_t bytes_cut;	/* present, in a huge page left out as it is cut */
	uint64_t bytes_swapped;
};

/*
 * Describe the pages from survey->start on in at most max extents, and advance
 * survey->start past what was described. Returns the number of extents; the
 * range is done when start has reached end.
 * -ENOTTY: the kernel has no PAGEMAP_SCAN. -ESRCH: the process is gone.
 */
PF_API int64_t pf_survey_next(struct pf_survey *survey, struct pf_extent *extents, uint64_t max);

/*
 * The page size in bytes of the mapping at an address, by an open /proc/PID/maps:
 * that of its pool if it is of hugetlb pages, else that of base pages.
 * -ENOENT: nothing is mapped there. -ENOTTY: the kernel cannot be asked (Linux
 * 6.11 can).
 */
PF_API int64_t pf_mapping_page_bytes(int32_t maps_fd, uint64_t address);

/* ---- The crew: worker threads ------------------------------------------- */

/*
 * Call work(arg, worker) on the calling thread (worker 0) and on threads - 1
 * helpers (1, 2, ...), each pinned to its entry of cpus; NULL leaves them
 * unpinned. The caller itself is never pinned; when it runs on one of cpus, no
 * helper gets that one. A helper that has not begun when the caller is done is
 * taken back, so work must be such that any number of workers finishes it.
 * poll, when not NULL, is called about every poll_us while the caller waits.
 *
 * Helpers are created on first use with all signals blocked, kept between
 * calls, and gone after pf_crew_stop() or at exit. A forked child starts with
 * a crew of its own. Too few threads to be had is no error. Returns the number
 * of workers that took part.
 *
 * Helpers work at SCHED_IDLE, so that they take no time from anyone, where they
 * can be lifted out of it (CAP_SYS_NICE or RLIMIT_NICE): the caller does that
 * when it has waited 0.5 ms for them, and a thread that watches over them does
 * it for one that gets no CPU in the middle of its work. Both engines' helpers
 * leave a job once that was needed, or when they had to wait for their CPU for
 * a quarter of the time. The time they use is this process's.
 */
PF_API int pf_crew_run(uint32_t threads, const int32_t *cpus,
		       void (*work)(void *arg, uint32_t worker), void *arg,
		       int (*poll)(void *arg), void *poll_arg, uint32_t poll_us);

/* 1: helpers work at SCHED_IDLE. 0: like other threads, as nobody could lift them again. */
PF_API int pf_crew_yields(void);

/* Helpers that exist now, busy or idle. */
PF_API uint32_t pf_crew_size(void);

/* End the idle helpers and wait until they are gone. */
PF_API void pf_crew_stop(void);

/* ---- Copy ------------------------------------------------------------------ */

/*
 * How bytes are copied. The vector methods store past the caches (SSE2, AVX2,
 * AVX512, NEON), which is best for what is larger than they are.
 */
enum pf_copy_method {
	PF_COPY_AUTO = 0,	/* by size */
	PF_COPY_MEMCPY = 1,	/* the C library's */
	PF_COPY_WORDS = 2,	/* 8 bytes at a time: any CPU */
	PF_COPY_REP_MOVSB = 3,	/* x86 */
	PF_COPY_SSE2 = 4,
	PF_COPY_AVX2 = 5,
	PF_COPY_AVX512 = 6,
	PF_COPY_NEON = 7,	/* aarch64 */
	PF_COPY_VSX = 8,	/* ppc64le */
	PF_COPY_METHODS = 9,
};

/* The methods that this CPU and system can do: bits 1 << method, without AUTO. */
PF_API uint32_t pf_copy_methods(void);

/* Such as "avx512"; NULL for no method. */
PF_API const char *pf_copy_name(uint32_t method);

/*
 * The method that `method` means for so many bytes: itself, or what AUTO comes
 * to. -EINVAL: no method. -ENOTSUP: not on this CPU.
 */
PF_API int pf_copy_choose(uint64_t bytes, uint32_t method);

/*
 * Copy on the calling thread. Any length, any alignment; ranges that overlap
 * are refused with -EINVAL before a byte is written. Returns 0.
 *
 * The source may be written, and the target read, meanwhile: a word of 8 bytes
 * that is aligned in both arrives whole, as it was at some moment. WORDS
 * promises that on every CPU; the others do it as CPUs access vectors line by
 * line. Nothing is promised about which of several words is the later one.
 *
 * The stores are ordered before whatever the caller stores afterwards.
 */
PF_API int pf_copy_pages(void *dst, const void *src, uint64_t bytes, uint32_t method);

/*
 * The same by the crew: the caller and up to threads - 1 helpers, placed by
 * cpus as pf_crew_run() has it, claim pieces of the range. With AUTO, fewer
 * threads where the size is not work for so many. Returns the number of
 * threads that took part, or -EINVAL or -ENOTSUP, and nothing was copied.
 */
PF_API int pf_copy_pages_mthread(void *dst, const void *src, uint64_t bytes, uint32_t threads,
				 const int32_t *cpus, uint32_t method);

/*
 * The same for scattered pages: src[i] is copied to dst[i], page_size bytes
 * each. No target may overlap a source; only a page's own is looked at.
 */
PF_API int pf_copy_page_lists(void *const *dst, const void *const *src, uint64_t pages,
			      uint64_t page_size, uint32_t threads, const int32_t *cpus,
			      uint32_t method);

/* What AUTO goes by, in the whole process. */
struct pf_copy_tuning {
	uint32_t large_method;	/* of copies of large_bytes and more; memcpy below */
	uint32_t reserved;
	uint64_t large_bytes;
	uint64_t thread_bytes;	/* work for one thread: two from twice this on */
};

PF_API void pf_copy_tuned(struct pf_copy_tuning *now);

/* -EINVAL: no method, or no bytes for a thread. -ENOTSUP: not on this CPU. */
PF_API int pf_copy_tune(const struct pf_copy_tuning *wanted);

/*
 * Measure what is best here, on 8 MiB of memory of its own and in some 20 ms,
 * the crew's part with one helper placed by cpus (of two entries, or NULL).
 * Changes nothing: give the result to pf_copy_tune(). -ENOMEM.
 */
PF_API int pf_copy_measure(struct pf_copy_tuning *found, const int32_t *cpus);

/*
 * For experiments: the loop of the STREAM benchmark, a[i] = b[i], as the
 * compiler makes it, and `count` copies timed one after the other.
 */
PF_API void pf_stream_copy(double *a, const double *b, uint64_t count);

struct pf_copy_timing {
	/* set by the caller */
	void *dst;
	const void *src;
	uint64_t room;		/* bytes of either */
	uint64_t bytes;		/* of one copy; at most room */
	uint64_t stride;	/* from one copy's place to the next; 0: all in one place */
	uint64_t count;
	const int32_t *cpus;
	uint32_t threads;	/* 0: pf_copy_pages(), else pf_copy_pages_mthread() */
	uint32_t method;
	uint32_t stream;	/* 1: pf_stream_copy() */
	uint32_t reserved;
	/* kept by the core from call to call */
	uint64_t at;		/* place of the next copy */
	/* written by the core */
	uint64_t ns;		/* that all of them took */
};

/* 0, or what a copy returned. */
PF_API int pf_copy_time(struct pf_copy_timing *timing);

/* ---- Pace: not too fast, and not slower than one thread ------------------- */

/* A part of struct pf_move; it adds up over several calls. */
struct pf_pace {
	/* set by the caller */
	uint64_t max_rate;	/* bytes per second, 0: as fast as it goes; any thread, any time */
	uint32_t judge;		/* 1: measure whether helpers help, else do without them */
	/* written by the core */
	uint32_t fell_back;	/* how often the helpers were sent away */
	uint64_t alone_rate;	/* bytes per second of the caller alone, 0: not measured */
	uint64_t together_rate;	/* ... and of all, when it was last judged */
	uint64_t due_us;	/* for max_rate: what was claimed is paid for by then */
	uint32_t shift;		/* of the pages that the rates are of */
	uint32_t helpers_left;	/* how often one left before the end, as its CPU was wanted */
};

/* ---- Kernel engine: move_pages(2) from many threads ---------------------- */

enum pf_blocking {
	PF_ASYNC = 1,		/* one attempt, busy pages are reported at once */
	PF_SYNC_LIGHT = 2,	/* busy pages are tried again, for 4 ms a batch */
	PF_SYNC = 4,		/* ... for 0.13 s a batch, with growing pauses */
};

enum {
	PF_MOVE_SHARED = 1,	/* MPOL_MF_MOVE_ALL: pages of several processes too */
	PF_MOVE_EXACT = 2,	/* ask for every page's node before moving it */
	PF_MOVE_KERNEL_MT = 4,	/* MPOL_MF_MOVE_MT: see pf_kernel_has_mt() */
};

struct pf_failure {
	uint64_t address;
	int32_t error;		/* an errno */
	int32_t shift;
};

/*
 * What has been done so far. Written with atomic additions while the engine
 * runs; another thread may read the 64-bit counters at any time.
 */
struct pf_progress {
	uint64_t bytes_moved;
	uint64_t bytes_already;		/* on the target before */
	uint64_t bytes_elsewhere;	/* on no source node: left alone */
	uint64_t bytes_gone;		/* freed meanwhile, or the zero page */
	uint64_t bytes_failed;
	uint64_t bytes_skipped;		/* not tried: cancelled or stopped before */
	uint64_t pages_moved[3];	/* by enum pf_page_kind */
	uint64_t pages_already[3];
	uint64_t pages_elsewhere;
	uint64_t pages_gone;
	uint64_t pages_skipped;
	uint64_t pages_unsampled;	/* counted as moved without having been asked before */
	uint64_t failed[256];		/* pages by errno */
	uint64_t calls;			/* move_pages calls that moved */
	uint64_t retried;		/* pages tried more than once */
	uint64_t longest_call_us;
	uint64_t failures_seen;
	struct pf_failure failures[32];	/* the first ones */
};

struct pf_move {
	/* set by the caller */
	int32_t pid;			/* 0: this process */
	int32_t target;			/* node */
	uint32_t flags;
	uint32_t blocking;		/* enum pf_blocking */
	uint32_t threads;		/* caller included */
	uint32_t poll_us;		/* 0: never */
	const int32_t *cpus;		/* one for each thread, or NULL */
	const struct pf_extent *extents;
	uint64_t n_extents;
	int32_t *statuses;		/* one for each page in order, or NULL */
	const uint64_t *sources;	/* PF_NODE_WORDS words: move only from there; or NULL */
	uint64_t batch_bytes;		/* first size of a batch; adapted while it runs */
	uint64_t smallest_bytes;	/* shares shrink to this, if there is so much; 0: 2 MiB */
	uint32_t batch_us;		/* what one call should take; 0: batch_bytes is kept */
	int (*poll)(void *arg);		/* not 0: cancel. On the calling thread only */
	void *poll_arg;
	/* written by the core */
	uint32_t cancel;		/* any thread may set it */
	int32_t error;			/* errno that stopped the move, or 0 */
	uint32_t workers;		/* most that took part */
	/* set by any thread, any time */
	uint32_t pause;			/* not 0: no batch is begun; the call waits, and polls */
	struct pf_pace pace;
	struct pf_progress progress;
};

/*
 * Move the pages of the extents to the target node. Can be called again with
 * further extents; progress adds up. Returns 0 when every page was attended to,
 * -ECANCELED after a cancel, or -errno when the kernel refused (also in error).
 * -ENOMEM: the target is full. -ENOBUFS: no memory for the engine's own lists.
 * Uses at most 32 MiB for its lists, or 24 KiB a thread, whatever the extents.
 */
PF_API int pf_move_run(struct pf_move *move);

/* ---- Latency ---------------------------------------------------------------- */

/*
 * Follow a chain of words, each the address of the next, from *place on, and
 * leave there how far it came. Returns the nanoseconds that so many hops took;
 * -EINVAL when *place is no word's address.
 */
PF_API int64_t pf_chase(uint64_t *place, uint64_t hops);

/* ---- Where pages are ------------------------------------------------------ */

struct pf_locate {
	int32_t pid;
	uint32_t threads;
	const int32_t *cpus;
	const struct pf_extent *extents;
	uint64_t n_extents;
	int32_t *statuses;		/* one for each page in order, or NULL */
	uint64_t stride;		/* ask for every stride-th page; 0 and 1: for all */
	/* written by the core */
	int32_t error;
	uint32_t reserved;
	uint64_t pages_gone;
	uint64_t pages_failed;
	uint64_t pages[1024][3];	/* by node and enum pf_page_kind */
};

/* Ask the kernel for the node of each page; move_pages(2) without nodes. */
PF_API int pf_locate_run(struct pf_locate *locate);

/*
 * The raw system call, for comparison and for tools: returns what it returns,
 * or -errno.
 */
PF_API int64_t pf_sys_move_pages(int32_t pid, uint64_t count, const uint64_t *pages,
				 const int32_t *nodes, int32_t *status, int32_t flags);

/* ---- Pages on a chosen node ------------------------------------------------ */

/*
 * Have pages of start..start+bytes come from the node from now on, wherever it
 * has room (MPOL_PREFERRED by mbind(2)). 0 or -errno; -EPERM: seccomp.
 */
PF_API int pf_prefer_node(uint64_t start, uint64_t bytes, int32_t node);

enum {
	PF_POPULATE_HUGETLB = 1,	/* the mapping is one of hugetlb pages */
	PF_POPULATE_LATER = 2,		/* set the policy and the page size, touch nothing */
};

/*
 * Private anonymous address space, aligned to 1 << shift, nothing of it touched;
 * with PF_POPULATE_HUGETLB of hugetlb pages of that size, which are set aside at
 * once. The address, or -errno: -ENOMEM no room, or no free hugetlb pages. The
 * caller ends it with pf_unmap().
 */
PF_API int64_t pf_map(uint64_t bytes, uint32_t shift, uint32_t flags);
PF_API int pf_unmap(uint64_t start, uint64_t bytes);

/*
 * Populate private anonymous memory of the caller with pages of 1 << shift from
 * the node, by several threads, and keep the policy of pf_prefer_node(). Pages
 * above the base size are THPs (MADV_HUGEPAGE), at the base size MADV_NOHUGEPAGE
 * keeps them so. Each page is asked for its node. The content stays.
 *
 * 0: all are there. 1: all are there, but nobody may say on which node (seccomp
 * forbids move_pages). -ENOMEM: the node has no room, or not in pages of that
 * size (seen on Linux 6.7 and later); some may be populated, elsewhere even: unmap
 * them. Nothing is killed for it, except where a memory cgroup is at its limit.
 */
PF_API int pf_populate(uint64_t start, uint64_t bytes, int32_t node, uint32_t shift,
		       uint32_t flags, uint32_t threads, const int32_t *cpus);

/* ---- Pool: pages populated ahead ---------------------------------------------- */

/*
 * Add bytes of pages of 1 << shift on the node to the warm pool, which engines
 * copy into and give the old pages back to. As pf_populate(); after -errno
 * nothing is left behind. The pool never holds more than is reserved, in at
 * most 16384 pieces; what is given back beyond either is unmapped. A forked child
 * starts with an empty pool.
 */
PF_API int pf_pool_reserve(int32_t node, uint32_t shift, uint64_t bytes, uint32_t threads,
			   const int32_t *cpus);

/*
 * Take bytes off the reservation, or all of it where they are more. Returns the
 * bytes unmapped, the rest is lent out. -EINVAL: no whole pages.
 */
PF_API int64_t pf_pool_release(int32_t node, uint32_t shift, uint64_t bytes);

/* What the pool holds now. */
PF_API uint64_t pf_pool_bytes(int32_t node, uint32_t shift);

/* ---- The NUMA system calls as they are ------------------------------------- */

/*
 * Each returns what the system call returns, or -errno; see the man pages. A
 * node mask is an array of 64-bit words; maxnode is its number of bits, plus 1.
 */
PF_API int64_t pf_sys_mbind(uint64_t start, uint64_t length, int32_t mode,
			    const uint64_t *mask, uint64_t maxnode, uint32_t flags);
PF_API int64_t pf_sys_migrate_pages(int32_t pid, uint64_t maxnode, const uint64_t *from,
				    const uint64_t *to);
PF_API int64_t pf_sys_get_mempolicy(int32_t *mode, uint64_t *mask, uint64_t maxnode,
				    uint64_t address, uint64_t flags);
PF_API int64_t pf_sys_set_mempolicy(int32_t mode, const uint64_t *mask, uint64_t maxnode);
PF_API int64_t pf_sys_set_mempolicy_home_node(uint64_t start, uint64_t length,
					      uint64_t home_node, uint64_t flags);

/* ---- The same calls with MPOL_MF_MOVE_MT: done by several threads ------------ */

/*
 * The flag of mbind() and move_pages(): move with several threads. It goes with
 * MPOL_MF_MOVE or MPOL_MF_MOVE_ALL, else the answer is EINVAL, which is also what
 * a stock kernel says; the functions below take it on every kernel.
 */
enum { PF_MPOL_MF_MOVE_MT = 1 << 7 };

/* 1 when the running kernel takes the flag itself (found by trying), else 0. */
PF_API int pf_kernel_has_mt(void);

struct pf_mt {
	/* set by the caller */
	uint32_t threads;		/* caller included */
	uint32_t measure;		/* not 0: find out the bytes that move_pages moves */
	const int32_t *cpus;		/* one for each thread, or NULL */
	uint64_t memory_nodes[16];	/* the machine's nodes with memory; empty: not known */
	/* added up by the core; another thread may read them at any time */
	uint64_t calls;			/* done by several threads */
	uint64_t passed;		/* handed to the kernel as they were */
	uint64_t pages;			/* moved; a huge page is one, or as often as it is listed */
	uint64_t bytes;			/* moved */
	uint64_t busy_us;		/* inside the calls done by several threads */
	uint64_t repeated;		/* calls undone and handed to the kernel after a failure */
	uint32_t workers;		/* most that took part in a call */
	uint32_t reserved;
};

/*
 * Like the system calls, to the letter: return value (or -errno), statuses in
 * the caller's order, and where pages are afterwards, also when some cannot be
 * moved. What several threads cannot do in exactly the kernel's way is handed
 * to the kernel as it is: lists that name the same 2 MiB block in several
 * places, policies with more than one node, anything small or wrong.
 *
 * One deviation: a large folio of a file, or moved by mremap(2), that crosses a
 * multiple of 2 MiB and is listed on both sides of it, may show EBUSY for
 * another of its pages than with one thread.
 *
 * Any pointer may be bad; that is EFAULT. mt->threads 1 hands everything on.
 */
PF_API int64_t pf_mt_move_pages(struct pf_mt *mt, int32_t pid, uint64_t count,
				const uint64_t *pages, const int32_t *nodes, int32_t *status,
				int32_t flags);
PF_API int64_t pf_mt_mbind(struct pf_mt *mt, uint64_t start, uint64_t length, int32_t mode,
			   const uint64_t *mask, uint64_t maxnode, uint32_t flags);

/* migrate_pages(2) has no flags: this is the parallel form itself. */
PF_API int64_t pf_mt_migrate_pages(struct pf_mt *mt, int32_t pid, uint64_t maxnode,
				   const uint64_t *from, const uint64_t *to);

/* ---- User engine: this process's own pages, at the speed of a copy ------------- */

/*
 * Private anonymous memory of the calling process, piece by piece: the pages of
 * a piece are taken away, so that no access reaches it, copied, and others put
 * in. Several threads each have a piece of their own at a time. The mappings,
 * their flags and policies stay as they are. Whoever touches the piece
 * meanwhile waits, whether the program itself or the kernel for it (read(2)),
 * a few hundred microseconds as a rule. What a device writes into the range
 * while it is away is the difference between the ways.
 */
enum pf_user_way {
	/*
	 * The kernel takes page after page and refuses those that are pinned for a
	 * device, shared by an earlier fork, or merged by KSM; they are left to the
	 * caller in `left`. Other threads may do what they like, but not unmap the
	 * range and map it anew. Needs UFFDIO_MOVE, Linux 6.8.
	 */
	PF_USER_CHECKED = 1,
	/*
	 * Page tables are taken away whole. Faster for base pages, and unchecked: a
	 * device that writes into the range meanwhile (O_DIRECT, io_uring, RDMA)
	 * writes into the old page, and its bytes are lost. Nor may another thread
	 * unmap, remap, protect or madvise the range meanwhile.
	 */
	PF_USER_HOLD = 2,
	/* Readers go on during the copy and only writers wait; else as HOLD. */
	PF_USER_PROTECT = 3,
};

enum {
	PF_USER_AGAIN = 1,	/* give pages that are on the target already new ones, too */
	PF_USER_EXACT = 2,	/* ask for every page's node, and keep old pages for the pool */
	PF_USER_FILL = 4,	/* new base pages by UFFDIO_COPY, even if the pool has some */
	PF_USER_NO_FILL = 8,	/* ... never: populate, copy and move in, whatever it costs */
};

/* What the kernel lets this process do; see pf_user_features(). */
enum {
	PF_USER_HAS_FAULTS = 1,		/* userfaultfd(2), faults of the kernel included */
	PF_USER_HAS_MOVE = 2,		/* UFFDIO_MOVE, for CHECKED and for huge pages */
	PF_USER_HAS_EVENTS = 4,		/* hears of mremap and madvise; for CHECKED */
	PF_USER_HAS_REMAP = 8,		/* MREMAP_DONTUNMAP, for HOLD and PROTECT */
	PF_USER_HAS_PROTECT = 16,	/* UFFDIO_WRITEPROTECT, for PROTECT */
	PF_USER_HAS_PROTECT_ABSENT = 32,	/* ... of absent pages too */
	PF_USER_HAS_COLLAPSE = 64,	/* MADV_COLLAPSE, Linux 6.1, for page_shift 21 */
};

/*
 * A mask of the above, by trying. -EPERM: there is userfaultfd, but not for
 * faults that the kernel takes, which needs CAP_SYS_PTRACE, or access to
 * /dev/userfaultfd, or vm.unprivileged_userfaultfd=1. -ENOSYS: there is none.
 */
PF_API int64_t pf_user_features(void);

enum { PF_STALL_BUCKETS = 128 };

/* As pf_progress: written with atomic additions while the engine runs. */
struct pf_user_progress {
	uint64_t bytes_moved;
	uint64_t bytes_already;		/* on the target before */
	uint64_t bytes_gone;		/* freed meanwhile */
	uint64_t bytes_left;		/* not for this engine, see left */
	uint64_t bytes_skipped;		/* not tried: cancelled, refused, or no room in left */
	uint64_t bytes_filled;		/* moved by UFFDIO_COPY, the rest with UFFDIO_MOVE */
	uint64_t bytes_pooled;		/* moved into pages of the warm pool */
	uint64_t pages_moved[3];	/* by enum pf_page_kind, of what they are now */
	uint64_t pages_already[3];
	uint64_t pages_unsampled;	/* counted as moved without having been asked before */
	uint64_t left[256];		/* bytes by errno */
	uint64_t pieces;
	uint64_t bytes_collapsed;	/* base pages that are huge ones now, moved or already */
	/* ... and that stayed as they were: by errno of MADV_COLLAPSE, 0: no whole huge page */
	uint64_t uncollapsed[256];
	uint64_t stall_us_max;		/* longest time that an access may have waited */
	/* Pieces by their stall in us: below 4 by the us, then four buckets an octave. */
	uint64_t stalls[128];
};

struct pf_user {
	/* set by the caller */
	int32_t target;			/* node */
	uint32_t way;			/* enum pf_user_way */
	uint32_t flags;
	uint32_t page_shift;		/* 0: pages keep their size; or the base size; or 21 */
	uint32_t threads;		/* caller included */
	uint32_t poll_us;		/* 0: never */
	const int32_t *cpus;		/* one for each thread, or NULL */
	const struct pf_extent *extents;	/* each in one mapping, no hugetlb pages */
	uint64_t n_extents;
	struct pf_extent *left;		/* what was left for another engine, in no order */
	uint64_t max_left;
	uint64_t piece_bytes;		/* first size of a piece; adapted while it runs */
	uint32_t stall_us;		/* no access should wait longer; 0: 20 ms */
	uint32_t copy_method;		/* enum pf_copy_method */
	uint64_t max_rate;		/* bytes a second, 0: as it goes; any thread, any time */
	int (*poll)(void *arg);		/* not 0: cancel. On the calling thread only */
	void *poll_arg;
	/* written by the core */
	uint64_t due_us;		/* for max_rate: what was taken is paid for by then */
	uint64_t n_left;		/* max_left: there may be more that found no room */
	uint32_t cancel;		/* any thread may set it */
	uint32_t workers;
	/* set by any thread, any time */
	uint32_t pause;			/* not 0: no piece is begun; the call waits, and polls */
	/* written by the core */
	uint32_t policy_lost;		/* errno: the calling thread's memory policy is not what it was */
	uint64_t run_us;		/* how long all calls took together */
	struct pf_user_progress progress;
};

/*
 * Move the pages of the extents to the target node. Can be called again;
 * progress adds up, n_left begins anew. Returns 0 when every page was attended
 * to (moved, already, gone or left), -ECANCELED after a cancel, -EPERM or
 * -ENOSYS as pf_user_features(), -EOPNOTSUPP: the kernel lacks what the way
 * needs. `left` by errno: EBUSY pinned, shared or merged; EDEADLK the engine
 * itself runs on it; ENOMEM no room on the target, in such pages; EINVAL the
 * mapping is not private, anonymous and writable, or ends inside of a piece, or
 * changed meanwhile; EMFILE, ENFILE, EAGAIN: no descriptor for a userfaultfd, or
 * too many threads at it.
 *
 * page_shift 21 makes one huge page of each 2 MiB of base pages that lie so, are
 * all there, and all on the target: by MADV_COLLAPSE, which copies them there
 * once more. The kernel refuses what is pinned, shared, or MADV_NOHUGEPAGE.
 *
 * Takes two pieces of memory for each thread, 16 MiB at most, and no more.
 * fork() in another thread waits for the pieces under way; a child made by
 * clone(2) directly, past the C library, may find holes.
 */
PF_API int pf_user_run(struct pf_user *user);

/*
 * Addresses that the kernel would not let the core unmap (vm.max_map_count), in
 * bytes. They hold no pages, and are unmapped as soon as the kernel lets it.
 */
PF_API uint64_t pf_kept_bytes(void);

/* ---- Exchange: two ranges of this process swap their nodes ---------------------- */

/* Present pages of both ranges: a + x is exchanged with b + x. Each in one mapping. */
struct pf_exchange_pair {
	uint64_t a;
	uint64_t b;
	uint64_t bytes;		/* whole base pages */
};

enum { PF_EXCHANGE_SAME = 1 };	/* also pages that are on one node, as PF_USER_AGAIN */

/* Counters are of one side, and written as in pf_progress. */
struct pf_exchange {
	/* set by the caller */
	const struct pf_exchange_pair *pairs;	/* no page may be in two of them */
	uint64_t n_pairs;
	const int32_t *cpus;		/* one for each thread, or NULL */
	uint32_t threads;		/* caller included */
	uint32_t poll_us;		/* 0: never */
	int (*poll)(void *arg);		/* not 0: cancel. On the calling thread only */
	void *poll_arg;
	uint32_t flags;
	/* written by the core */
	uint32_t cancel;		/* any thread may set it */
	int32_t error;			/* errno that stopped it, or 0 */
	uint32_t workers;
	uint64_t bytes_exchanged;
	uint64_t bytes_same;		/* on one node before: left alone */
	uint64_t bytes_gone;		/* freed meanwhile, on either side */
	uint64_t bytes_skipped;		/* not tried: cancelled */
	uint64_t refused[256];		/* bytes by errno, as in pf_user's left */
	uint64_t pieces;
	uint64_t stall_us_max;		/* longest time that an access may have waited */
	uint64_t stalls[128];		/* as in pf_user_progress */
};

/*
 * Pages of two ranges swap places, the bytes stay: private anonymous memory as
 * pf_user_run() moves it by PF_USER_CHECKED, with the same guarantees. Works
 * when both nodes are full, as it allocates no page. Huge pages stay huge where
 * both ranges lie alike to their borders. Returns as pf_user_run().
 */
PF_API int pf_exchange_run(struct pf_exchange *exchange);

/* cffi: end */

#ifdef __cplusplus
}
#endif

#endif /* PAGEFERRY_H */
