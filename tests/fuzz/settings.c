// SPDX-License-Identifier: Apache-2.0
/* What the preload library is told in the environment: any texts, one after a newline each. */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "preload.h"

static const char *const names[] = {
	"PAGEFERRY_MT", "PAGEFERRY_THREADS", "PAGEFERRY_CPUS", "PAGEFERRY_NODES",
};

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	char *text = strndup((const char *)data, size);
	char *rest = text;
	const int32_t *cpus;
	uint32_t i, threads;

	if (!text)
		return 0;
	for (i = 0; i < sizeof(names) / sizeof(*names); i++) {
		const char *line = strsep(&rest, "\n");

		if (line)
			setenv(names[i], line, 1);
		else
			unsetenv(names[i]);
	}
	memset(&preload_settings, 0, sizeof(preload_settings));
	preload_read_settings();
	if (preload_settings.n_cpus > PF_MAX_THREADS || preload_settings.threads > PF_MAX_THREADS)
		abort();
	for (i = 0; i < preload_settings.n_cpus; i++)
		if (preload_settings.cpus[i] < 0)
			abort();
	threads = preload_threads(&cpus);
	if (!threads || threads > PF_MAX_THREADS)
		abort();
	free(text);
	return 0;
}
