// SPDX-License-Identifier: Apache-2.0
#include <errno.h>
#include <fcntl.h>
#include <stdbool.h>
#include <sys/mman.h>
#include <unistd.h>

#include "mapping.h"
#include "pageferry.h"

/* "start-end rwxp ...": how much of the line has been read, and what it said. */
struct line {
	struct mapping mapping;
	uint32_t field;		/* 0 start, 1 end, 2 protection, 3 the rest */
};

static void take(struct line *line, char c)
{
	uint64_t *number = line->field ? &line->mapping.end : &line->mapping.start;

	if (line->field < 2) {
		if (c == '-' || c == ' ')
			line->field++;
		else
			*number = *number << 4 | (uint64_t)(c <= '9' ? c - '0' : c - 'a' + 10);
	} else if (line->field == 2) {
		if (c == ' ')
			line->field++;
		line->mapping.protection |= c == 'r' ? PROT_READ : c == 'w' ? PROT_WRITE :
					    c == 'x' ? PROT_EXEC : 0;
	}
}

int mapping_at(uint64_t address, struct mapping *mapping)
{
	struct line line = { .field = 0 };
	int result = -ENOENT;
	char text[4096];
	ssize_t got, i;
	int fd = open("/proc/self/maps", O_RDONLY | O_CLOEXEC);

	if (fd < 0)
		return -errno;
	while (result == -ENOENT && (got = read(fd, text, sizeof(text))) > 0) {
		for (i = 0; i < got; i++) {
			if (text[i] != '\n') {
				take(&line, text[i]);
				continue;
			}
			if (address >= line.mapping.start && address < line.mapping.end) {
				*mapping = line.mapping;
				result = 0;
				break;
			}
			line = (struct line){ .field = 0 };
		}
	}
	close(fd);
	return result;
}

static int ask(int maps, uint64_t address, struct mapping_query *query)
{
	*query = (struct mapping_query){ .size = sizeof(*query), .address = address };
	return ioctl(maps, MAPPING_QUERY, query) ? -errno : 0;
}

uint64_t mapping_end(int maps, uint64_t address)
{
	struct mapping_query query;

	return ask(maps, address, &query) ? 0 : query.end;
}

int64_t pf_mapping_page_bytes(int32_t maps_fd, uint64_t address)
{
	struct mapping_query query;
	int code = ask(maps_fd, address, &query);

	return code ? code : (int64_t)query.page_bytes;
}
