// SPDX-License-Identifier: Apache-2.0
#include <sched.h>
#include <stdlib.h>
#include <string.h>

#include "preload.h"

enum {
	MOST_UNASKED = 8,	/* threads, when nobody planned for this machine */
	MOST_NUMBER = 65535,	/* no list of CPUs or nodes goes on beyond */
};

struct preload_settings preload_settings;

static const char *setting(const char *name)
{
	const char *text = secure_getenv(name);

	return text && *text ? text : NULL;
}

/* The next number of a list such as 0,2-5, ranges unrolled; -1 at its end. */
struct list {
	const char *text;
	long next;
	long last;
};

/* From 0 to MOST_NUMBER; anything else ends the list. */
static long number(const char *text, char **end)
{
	long value;

	*end = (char *)text;
	if (*text < '0' || *text > '9')
		return -1;
	value = strtol(text, end, 10);
	return value > MOST_NUMBER ? -1 : value;
}

static long list_next(struct list *list)
{
	char *end;

	if (list->next <= list->last)
		return list->next++;
	list->next = list->last = number(list->text, &end);
	if (list->next >= 0 && *end == '-')
		list->last = number(end + 1, &end);
	if (list->next < 0 || list->last < list->next) {
		list->text = "";
		list->next = 0;
		list->last = -1;
		return -1;
	}
	list->text = *end == ',' ? end + 1 : "";
	return list->next++;
}

static void read_cpus(const char *text)
{
	struct list list = { .text = text, .next = 0, .last = -1 };
	struct preload_settings *settings = &preload_settings;
	long cpu;

	while (settings->n_cpus < PF_MAX_THREADS && (cpu = list_next(&list)) >= 0)
		settings->cpus[settings->n_cpus++] = (int32_t)cpu;
}

static void read_nodes(const char *text)
{
	struct list list = { .text = text, .next = 0, .last = -1 };
	long node;

	while ((node = list_next(&list)) >= 0 && node < PF_MAX_NODES)
		preload_settings.memory_nodes[node / 64] |= 1ull << node % 64;
}

void preload_read_settings(void)
{
	struct preload_settings *settings = &preload_settings;
	const char *text = setting("PAGEFERRY_MT");
	long threads;

	settings->mode = PRELOAD_FLAG;
	if (text && (!strcmp(text, "always") || !strcmp(text, "1")))
		settings->mode = PRELOAD_ALWAYS;
	else if (text && (!strcmp(text, "never") || !strcmp(text, "0")))
		settings->mode = PRELOAD_NEVER;
	text = setting("PAGEFERRY_THREADS");
	threads = text ? strtol(text, NULL, 10) : 0;
	if (threads > 0)
		settings->threads = threads < PF_MAX_THREADS ? (uint32_t)threads : PF_MAX_THREADS;
	text = setting("PAGEFERRY_CPUS");
	if (text)
		read_cpus(text);
	text = setting("PAGEFERRY_NODES");
	if (text)
		read_nodes(text);
	settings->log = setting("PAGEFERRY_LOG");
	settings->stats = setting("PAGEFERRY_STATS");
}

uint32_t preload_threads(const int32_t **cpus)
{
	const struct preload_settings *settings = &preload_settings;
	cpu_set_t set;
	uint32_t i, allowed;

	*cpus = NULL;
	if (settings->mode == PRELOAD_NEVER)
		return 1;
	/* With more CPUs than the set has room for, there is no reason to be careful. */
	if (sched_getaffinity(0, sizeof(set), &set))
		return settings->threads ? settings->threads : MOST_UNASKED;
	allowed = (uint32_t)CPU_COUNT(&set);
	if (!settings->threads)
		return allowed < MOST_UNASKED ? allowed : MOST_UNASKED;
	if (settings->n_cpus < settings->threads)
		return settings->threads;
	for (i = 0; i < settings->threads; i++)
		if (settings->cpus[i] >= CPU_SETSIZE || !CPU_ISSET(settings->cpus[i], &set))
			return settings->threads < allowed ? settings->threads : allowed;
	/*
	 * With a thread for each CPU there is nothing to choose, and a helper that is
	 * pinned to where the scheduler puts the caller waits beside an idle CPU.
	 */
	if (settings->threads < allowed)
		*cpus = settings->cpus;
	return settings->threads;
}
