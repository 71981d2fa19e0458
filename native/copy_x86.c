// SPDX-License-Identifier: Apache-2.0
/*
 * Copies for x86-64: non-temporal stores of three widths, and rep movsb.
 *
 * Non-temporal stores spare the read of the target's lines that an ordinary
 * store begins with, a third of all the traffic, and leave the caches alone.
 * What then limits one thread is the number of reads under way. A core follows
 * each page's stream by itself, and its prefetchers do not cross 4 KiB, so
 * several places are read in turn, and lines ahead are asked for in L2, which
 * can have more reads under way than L1.
 */
#if defined(__x86_64__)
#include <cpuid.h>
#include <immintrin.h>

#include "copy.h"
#include "pageferry.h"

enum {
	STREAMS = 4,
	WIDE = 64 << 10,	/* distance of the streams in a large copy */
	NARROW = 4096,		/* and in one of some pages */
	NEAR = 1024,		/* what one turn of the widest registers copies */
	AHEAD = 1024,		/* how far ahead lines are asked for */
};

/*
 * NAME: copy lines by registers of type VEC, TURN lines from each stream
 * before the next one. STREAMS * TURN * PF_LINE is what the registers hold.
 */
#define NON_TEMPORAL(NAME, ISA, VEC, LOAD, STORE, TURN)                                        \
	__attribute__((target(ISA))) PF_RACY static void NAME##_streams(                       \
		unsigned char *dst, const unsigned char *src, uint64_t distance,               \
		uint64_t ahead)                                                                \
	{                                                                                      \
		enum { EACH = (TURN) * PF_LINE / sizeof(VEC) };                                \
                                                                                               \
		for (uint64_t at = 0; at < distance; at += (TURN) * PF_LINE) {                 \
			VEC held[STREAMS][EACH];                                               \
                                                                                               \
			_Pragma("GCC unroll 16") for (int s = 0; s < STREAMS; s++) {           \
				const unsigned char *from = src + s * distance + at;           \
                                                                                               \
				_Pragma("GCC unroll 16") for (int l = 0; l < (TURN); l++)      \
					_mm_prefetch(from + ahead + l * PF_LINE, _MM_HINT_T1); \
				_Pragma("GCC unroll 16") for (int i = 0; i < (int)EACH; i++)   \
					held[s][i] = LOAD((const void *)(from + i * sizeof(VEC))); \
			}                                                                      \
			_Pragma("GCC unroll 16") for (int s = 0; s < STREAMS; s++) {           \
				unsigned char *to = dst + s * distance + at;                   \
                                                                                               \
				_Pragma("GCC unroll 16") for (int i = 0; i < (int)EACH; i++)   \
					STORE((void *)(to + i * sizeof(VEC)), held[s][i]);     \
			}                                                                      \
		}                                                                              \
	}                                                                                      \
                                                                                               \
	__attribute__((target(ISA))) PF_RACY static void NAME(                                 \
		unsigned char *dst, const unsigned char *src, uint64_t bytes)                  \
	{                                                                                      \
		for (; bytes >= STREAMS * WIDE; bytes -= STREAMS * WIDE) {                     \
			NAME##_streams(dst, src, WIDE, AHEAD);                                 \
			dst += STREAMS * WIDE;                                                 \
			src += STREAMS * WIDE;                                                 \
		}                                                                              \
		for (; bytes >= STREAMS * NARROW; bytes -= STREAMS * NARROW) {                 \
			NAME##_streams(dst, src, NARROW, AHEAD);                               \
			dst += STREAMS * NARROW;                                               \
			src += STREAMS * NARROW;                                               \
		}                                                                              \
		/* The streams adjoin now. With half the registers a plain loop is faster. */   \
		for (; (TURN) == 4 && bytes >= NEAR; bytes -= NEAR) {                          \
			NAME##_streams(dst, src, NEAR / STREAMS, bytes >= AHEAD + NEAR ? AHEAD : 0); \
			dst += NEAR;                                                           \
			src += NEAR;                                                           \
		}                                                                              \
		for (uint64_t at = 0; at < bytes; at += sizeof(VEC))                           \
			STORE((void *)(dst + at), LOAD((const void *)(src + at)));             \
	}

NON_TEMPORAL(copy_sse2, "sse2", __m128i, _mm_loadu_si128, _mm_stream_si128, 1)
NON_TEMPORAL(copy_avx2, "avx2", __m256i, _mm256_loadu_si256, _mm256_stream_si256, 2)
NON_TEMPORAL(copy_avx512, "avx512f", __m512i, _mm512_loadu_si512, _mm512_stream_si512, 4)

static void copy_movsb(unsigned char *dst, const unsigned char *src, uint64_t bytes)
{
	__asm__ volatile("rep movsb" : "+D"(dst), "+S"(src), "+c"(bytes) : : "memory");
}

void pf_copy_fence(void)
{
	_mm_sfence();
}

pf_copy_lines *pf_copy_arch(uint32_t method)
{
	switch (method) {
	case PF_COPY_REP_MOVSB:
		return copy_movsb;
	case PF_COPY_SSE2:
		return copy_sse2;	/* part of x86-64 */
	/* These ask the CPU, and whether the system saves the registers (xgetbv). */
	case PF_COPY_AVX2:
		return __builtin_cpu_supports("avx2") ? copy_avx2 : NULL;
	case PF_COPY_AVX512:
		return __builtin_cpu_supports("avx512f") ? copy_avx512 : NULL;
	default:
		return NULL;
	}
}
__attribute__((target("clflushopt"))) static void evict_unordered(const unsigned char *lines,
								  uint64_t bytes)
{
	for (uint64_t at = 0; at < bytes; at += PF_LINE)
		_mm_clflushopt((void *)(uintptr_t)(lines + at));
}

bool pf_copy_evict(const unsigned char *lines, uint64_t bytes)
{
	unsigned int a, b, c, d;

	if (__get_cpuid_count(7, 0, &a, &b, &c, &d) && b & bit_CLFLUSHOPT)
		evict_unordered(lines, bytes);
	else
		for (uint64_t at = 0; at < bytes; at += PF_LINE)
			_mm_clflush(lines + at);
	_mm_mfence();
	return true;
}
#endif /* __x86_64__ */
