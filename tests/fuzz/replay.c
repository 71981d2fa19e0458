// SPDX-License-Identifier: Apache-2.0
/* Gives files to a fuzz target, without libFuzzer: the corpus, in the tests. */
#include <dirent.h>
#include <stdint.h>
#include <string.h>

#include "test.h"

enum { LONGEST = 1 << 16 };

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int main(int argc, char **argv)
{
	DIR *folder = argc == 2 ? opendir(argv[1]) : NULL;
	struct dirent *entry;
	int tried = 0;

	CHECK(folder);
	while ((entry = readdir(folder))) {
		static uint8_t data[LONGEST];
		char path[1024];
		size_t size;
		FILE *file;

		if (entry->d_name[0] == '.')
			continue;
		snprintf(path, sizeof(path), "%s/%s", argv[1], entry->d_name);
		file = fopen(path, "rb");
		CHECK(file);
		size = fread(data, 1, sizeof(data), file);
		fclose(file);
		CHECK(!LLVMFuzzerTestOneInput(data, size));
		tried++;
	}
	closedir(folder);
	CHECK(tried);
	printf("%d inputs: ok\n", tried);
	return 0;
}
