// SPDX-License-Identifier: Apache-2.0
/*
 * What /proc/PID/pagemap and /proc/kpageflags may answer: any bytes. Whatever
 * they say, extents lie in the range or are huge pages that touch it, come in
 * order and do not overlap, and the survey comes to its end.
 */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "pageferry.h"

enum { HEADER = 8, MAX_EXTENTS = 64, PAGE_SHIFT = 12 };

static void expect(int truth)
{
	if (!truth)
		abort();
}

/* The first bytes choose the request, the rest is what the files have. */
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	static int pagemap = -1, flags = -1;
	struct pf_extent extents[MAX_EXTENTS];
	struct pf_survey survey = { .method = PF_SURVEY_PAGEMAP };
	uint64_t end = 0, huge, before;
	size_t half;

	if (size < HEADER)
		return 0;
	if (pagemap < 0) {
		pagemap = memfd_create("pagemap", MFD_CLOEXEC);
		flags = memfd_create("kpageflags", MFD_CLOEXEC);
	}
	half = data[7] * (size - HEADER) / 255;
	expect(!ftruncate(pagemap, 0) && !ftruncate(flags, 0));
	expect(pwrite(pagemap, data + HEADER, half, 0) == (ssize_t)half);
	expect(pwrite(flags, data + HEADER + half, size - HEADER - half, 0) >= 0);
	survey.start = (uint64_t)data[0] << PAGE_SHIFT;
	survey.end = survey.start + ((uint64_t)(data[1] | data[2] << 8) << PAGE_SHIFT);
	survey.pagemap_fd = pagemap;
	survey.kpageflags_fd = data[3] & 1 ? flags : -1;
	survey.flags = data[4] & (PF_SURVEY_TOUCHED | PF_SURVEY_DENSE);
	survey.huge_shift = data[5] & 1 ? 21 : 0;
	survey.huge_kind = data[5] & 2 ? PF_PAGE_HUGETLB : PF_PAGE_THP;
	huge = survey.huge_shift ? (1ull << survey.huge_shift) : 1;
	do {
		uint64_t room = data[6] % MAX_EXTENTS + 1;
		int64_t count;

		before = survey.start;
		count = pf_survey_next(&survey, extents, room);
		if (count < 0)
			return 0;
		expect((uint64_t)count <= room);
		expect(survey.start > before || survey.start >= survey.end);
		for (int64_t i = 0; i < count; i++) {
			uint64_t bytes = extents[i].pages << extents[i].shift;

			expect(bytes && extents[i].start >= end);
			expect(extents[i].kind < PF_PAGE_KINDS);
			end = extents[i].start + bytes;
			expect(end <= ((survey.end + huge - 1) & ~(huge - 1)));
		}
	} while (survey.start < survey.end);
	return 0;
}
