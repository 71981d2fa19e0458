/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Inside the core: system calls that do not pass through the C library. The
 * preload library puts itself before syscall(3) and before the wrappers, so
 * what it calls must not come back to it. errno is left alone.
 */
#ifndef PAGEFERRY_CALLS_H
#define PAGEFERRY_CALLS_H

#include <stdint.h>
#include <sys/syscall.h>

#if defined(__x86_64__) && defined(__LP64__)
#define PF_RAW_CALLS 1
#elif defined(__aarch64__)
#define PF_RAW_CALLS 1
#else
#include <errno.h>
#include <unistd.h>
#define PF_RAW_CALLS 0
#endif

#ifdef PF_INTERPOSE
/* tests/faults: where calls are made to fail. */
long interposed_call(long number, long a, long b, long c, long d, long e, long f);
#define raw_call interposed_call
#else
/* What the kernel returns: from -4095 to -1 it is an errno. */
static inline long raw_call(long number, long a, long b, long c, long d, long e, long f)
{
#if defined(__x86_64__) && defined(__LP64__)
	register long r10 __asm__("r10") = d;
	register long r8 __asm__("r8") = e;
	register long r9 __asm__("r9") = f;
	long result;

	__asm__ volatile("syscall"
			 : "=a"(result)
			 : "a"(number), "D"(a), "S"(b), "d"(c), "r"(r10), "r"(r8), "r"(r9)
			 : "rcx", "r11", "memory");
	return result;
#elif defined(__aarch64__)
	register long x8 __asm__("x8") = number;
	register long x0 __asm__("x0") = a;
	register long x1 __asm__("x1") = b;
	register long x2 __asm__("x2") = c;
	register long x3 __asm__("x3") = d;
	register long x4 __asm__("x4") = e;
	register long x5 __asm__("x5") = f;

	__asm__ volatile("svc 0"
			 : "+r"(x0)
			 : "r"(x8), "r"(x1), "r"(x2), "r"(x3), "r"(x4), "r"(x5)
			 : "memory");
	return x0;
#else
	int before = errno;
	long result = syscall(number, a, b, c, d, e, f);

	if (result < 0)
		result = -errno;
	errno = before;
	return result;
#endif
}
#endif

static inline long raw_move_pages(int32_t pid, uint64_t count, const void *pages,
				  const void *nodes, void *status, int flags)
{
	return raw_call(SYS_move_pages, pid, (long)count, (long)pages, (long)nodes,
			(long)status, flags);
}

/*
 * Memory of this process at addresses that a caller gave: copied by the kernel,
 * so that a bad one is -EFAULT and no crash. 0, or -errno.
 */
int user_read(void *to, const void *from, uint64_t bytes);
int user_write(void *to, const void *from, uint64_t bytes);

/* The first and the last entry of such an array, in one call: it is made for small lists too. */
int user_read_ends(uint64_t ends[2], const uint64_t *array, uint64_t count);

/* Zeroed memory straight from the kernel: a signal handler may have stopped malloc. */
void *map_memory(uint64_t bytes);

/*
 * The end of it, or of any anonymous mapping. Where the kernel refuses, its
 * pages are given back, and its addresses the next time: see unmap.c.
 */
void unmap_memory(void *memory, uint64_t bytes);

#endif
