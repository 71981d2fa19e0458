// SPDX-License-Identifier: Apache-2.0
/*
 * The copy for ppc64le, POWER8 and later: VSX registers of two doublewords.
 * Zeroing the target's lines first (dcbz) would spare their read, but whoever
 * looks at the target meanwhile would see zeros that were never in the source.
 */
#if defined(__powerpc64__)
#include <stddef.h>
#include <sys/auxv.h>

#include "copy.h"
#include "pageferry.h"

#ifndef PPC_FEATURE_HAS_VSX
#define PPC_FEATURE_HAS_VSX 0x00000080
#endif

enum { AHEAD = 1024 };

/*
 * In assembly: the order of the two doublewords in a register does not matter
 * to a copy, and the compiler's own loads swap them, twice, on POWER8.
 */
static void copy_vsx(unsigned char *dst, const unsigned char *src, uint64_t bytes)
{
	for (; bytes; bytes -= PF_LINE) {
		__asm__ volatile("dcbt 0, %[ahead]\n\t"
				 "lxvd2x 32, 0, %[src]\n\t"
				 "lxvd2x 33, %[x16], %[src]\n\t"
				 "lxvd2x 34, %[x32], %[src]\n\t"
				 "lxvd2x 35, %[x48], %[src]\n\t"
				 "stxvd2x 32, 0, %[dst]\n\t"
				 "stxvd2x 33, %[x16], %[dst]\n\t"
				 "stxvd2x 34, %[x32], %[dst]\n\t"
				 "stxvd2x 35, %[x48], %[dst]"
				 :
				 : [dst] "b"(dst), [src] "b"(src), [ahead] "b"(src + AHEAD),
				   [x16] "b"(16L), [x32] "b"(32L), [x48] "b"(48L)
				 : "v0", "v1", "v2", "v3", "memory");
		dst += PF_LINE;
		src += PF_LINE;
	}
}

void pf_copy_fence(void)
{
	__asm__ volatile("lwsync" : : : "memory");
}

pf_copy_lines *pf_copy_arch(uint32_t method)
{
	if (method == PF_COPY_VSX && getauxval(AT_HWCAP) & PPC_FEATURE_HAS_VSX)
		return copy_vsx;
	return NULL;
}
bool pf_copy_evict(const unsigned char *lines, uint64_t bytes)
{
	for (uint64_t at = 0; at < bytes; at += PF_LINE)
		__asm__ volatile("dcbf 0, %0" : : "r"(lines + at) : "memory");
	__asm__ volatile("sync" : : : "memory");
	return true;
}
#endif /* __powerpc64__ */
