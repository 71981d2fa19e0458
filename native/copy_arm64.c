// SPDX-License-Identifier: Apache-2.0
/*
 * The copy for aarch64: pairs of 16-byte registers, stored with the hint that
 * the target is not read soon (stnp).
 */
#if defined(__aarch64__)
#include <stddef.h>

#include "copy.h"
#include "pageferry.h"

enum { AHEAD = 1024 };

/* In assembly, as no compiler has a function for stnp of two vectors. */
static void copy_neon(unsigned char *dst, const unsigned char *src, uint64_t bytes)
{
	for (; bytes; bytes -= PF_LINE) {
		__asm__ volatile("prfm pldl2strm, [%[src], %[ahead]]\n\t"
				 "ldp q0, q1, [%[src]]\n\t"
				 "ldp q2, q3, [%[src], #32]\n\t"
				 "stnp q0, q1, [%[dst]]\n\t"
				 "stnp q2, q3, [%[dst], #32]"
				 :
				 : [dst] "r"(dst), [src] "r"(src), [ahead] "i"(AHEAD)
				 : "v0", "v1", "v2", "v3", "memory");
		dst += PF_LINE;
		src += PF_LINE;
	}
}

void pf_copy_fence(void)
{
	__asm__ volatile("dmb ishst" : : : "memory");
}

pf_copy_lines *pf_copy_arch(uint32_t method)
{
	return method == PF_COPY_NEON ? copy_neon : NULL;	/* part of aarch64 Linux */
}
bool pf_copy_evict(const unsigned char *lines, uint64_t bytes)
{
	for (uint64_t at = 0; at < bytes; at += PF_LINE)
		__asm__ volatile("dc civac, %0" : : "r"(lines + at) : "memory");
	__asm__ volatile("dsb ish" : : : "memory");
	return true;
}
#endif /* __aarch64__ */
