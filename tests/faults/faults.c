// SPDX-License-Identifier: Apache-2.0
/*
 * The fault matrix. Each scenario runs once without a fault, to find the call
 * sites; then once in a child of its own for each site and errno that the call
 * can return, with that site failing: the first time, in the middle, or for the
 * first 200 times. After each, every byte of the memory is what it was, its
 * mapping, protection and policy too, no thread is left or blocked, no signal
 * stays blocked, and no descriptor or mapping is left behind.
 *
 * One line for each is printed: scenario, call, addresses of the chain, errno,
 * when, how often, verdict, what the call said. scripts/test_faults.py makes a
 * table of them.
 */
#include <dirent.h>
#include <errno.h>
#include <inttypes.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "calls.h"
#include "interposer.h"
#include "pageferry.h"
#include "scenarios.h"

enum {
	BYTES = 4 << 20,
	HUGE_BYTES = 2 << 20,
	POLICY_WORDS = 17,
	PATIENCE_MS = 20000,	/* with a case, until it is said to hang */
	FIRST_PATIENCE_MS = 6 * PATIENCE_MS,	/* with the many runs that find the sites */
	TRANSIENT = 200,	/* so often a call fails that is to fail for good */
	MPOL_F_ADDR = 2,
};

/* ---- State that must be as before ------------------------------------------------------ */

struct state {
	int mappings;		/* in the memory */
	char flags[512];	/* of the last one */
	char protection[8];
	int mode;
	uint64_t nodes[POLICY_WORDS];
	int thread_mode;
	uint64_t thread_nodes[POLICY_WORDS];
	sigset_t blocked;
	int scheduler;
	cpu_set_t affinity;
};

static void read_mappings(struct state *state)
{
	uintptr_t start = (uintptr_t)memory.start, end = start + memory.bytes;
	FILE *file = fopen("/proc/self/smaps", "r");
	char line[512] = "", protection[8];
	bool inside = false;

	state->mappings = 0;
	while (file && fgets(line, sizeof(line), file)) {
		uint64_t from, to;

		if (sscanf(line, "%" SCNx64 "-%" SCNx64 " %7s", &from, &to, protection) == 3) {
			inside = from < end && start < to;
			state->mappings += inside;
			if (inside)
				memcpy(state->protection, protection, sizeof(protection));
		} else if (inside && !strncmp(line, "VmFlags:", 8)) {
			memcpy(state->flags, line, sizeof(line));
		}
	}
	if (file)
		fclose(file);
}

static void read_state(struct state *state, bool policy)
{
	memset(state, 0, sizeof(*state));
	read_mappings(state);
	if (!policy)
		raw_call(SYS_get_mempolicy, (long)&state->mode, (long)state->nodes,
			 PF_MAX_NODES + 1, (long)memory.start, MPOL_F_ADDR, 0);
	raw_call(SYS_get_mempolicy, (long)&state->thread_mode, (long)state->thread_nodes,
		 PF_MAX_NODES + 1, 0, 0, 0);
	sigprocmask(SIG_BLOCK, NULL, &state->blocked);
	state->scheduler = sched_getscheduler(0);
	sched_getaffinity(0, sizeof(state->affinity), &state->affinity);
}

static const char *changed(const struct state *before, const struct state *after,
			   bool policy_lost)
{
	if (before->mappings != after->mappings)
		return "the memory is in another number of mappings";
	if (strcmp(before->protection, after->protection))
		return "the memory has another protection";
	if (strcmp(before->flags, after->flags))
		return "the mapping has other flags";
	if (before->mode != after->mode || memcmp(before->nodes, after->nodes, sizeof(after->nodes)))
		return "the memory has another policy";
	if (!policy_lost &&
	    (before->thread_mode != after->thread_mode ||
	     memcmp(before->thread_nodes, after->thread_nodes, sizeof(after->thread_nodes))))
		return "the thread has another policy";
	if (memcmp(&before->blocked, &after->blocked, sizeof(after->blocked)))
		return "other signals are blocked";
	if (before->scheduler != after->scheduler ||
	    memcmp(&before->affinity, &after->affinity, sizeof(after->affinity)))
		return "the thread is scheduled in another way";
	return NULL;
}

static int entries(const char *path)
{
	DIR *folder = opendir(path);
	int count = 0;

	while (folder && readdir(folder))
		count++;
	if (folder)
		closedir(folder);
	return count;
}

/*
 * What the process holds, without malloc's heap: address space and memory in KiB. What could not be
 * unmapped is counted by the core, which tries again the next time.
 */
struct holdings {
	long mapped;
	long used;
	int descriptors;
};

static struct holdings held(void)
{
	struct holdings holdings = {
		.mapped = -(long)(pf_kept_bytes() >> 10),
		.descriptors = entries("/proc/self/fd"),
	};
	FILE *file = fopen("/proc/self/smaps", "r");
	char line[512];
	bool counts = false;
	uint64_t from, to;
	long kib;

	while (file && fgets(line, sizeof(line), file)) {
		if (sscanf(line, "%" SCNx64 "-%" SCNx64 " ", &from, &to) == 2) {
			counts = !strstr(line, "[heap]") && !strstr(line, "[stack]");
			holdings.mapped += counts ? (long)((to - from) >> 10) : 0;
		} else if (counts && sscanf(line, "Anonymous: %ld", &kib) == 1) {
			holdings.used += kib;
		}
	}
	if (file)
		fclose(file);
	return holdings;
}

/* All helpers end; a dismissed one does that in its own time. */
static bool threads_end(void)
{
	struct timespec pause = { .tv_nsec = 1000000 };

	pf_crew_stop();
	for (int i = 0; i < PATIENCE_MS / 2; i++) {
		if (entries("/proc/self/task") == 3)	/* with . and .. */
			return true;
		nanosleep(&pause, NULL);
	}
	return false;
}

/* ---- Memory ---------------------------------------------------------------------------------- */

/* Both halves hold the same, which is what copying one to the other leaves. */
static uint64_t word_at(uint64_t i)
{
	i %= BYTES / 16;
	return (i + 1) * 0x9e3779b97f4a7c15u ^ i << 40;
}

static void fill(void)
{
	uint64_t *words = (uint64_t *)memory.start;

	for (uint64_t i = 0; i < memory.bytes / 8; i++)
		words[i] = word_at(i);
}

static bool is_filled(void)
{
	const uint64_t *words = (const uint64_t *)memory.start;

	for (uint64_t i = 0; i < memory.bytes / 8; i++)
		if (words[i] != word_at(i))
			return false;
	return true;
}

/* With room around it, so that no neighbour is merged with it. */
static void memory_begin(bool huge)
{
	char *map = mmap(NULL, BYTES + 2 * HUGE_BYTES, PROT_NONE,
			 MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

	if (map == MAP_FAILED)
		exit(1);
	memory.start = (unsigned char *)map + HUGE_BYTES - (uintptr_t)map % HUGE_BYTES;
	memory.bytes = BYTES;
	if (mprotect(memory.start, BYTES, PROT_READ | PROT_WRITE) ||
	    madvise(memory.start, BYTES, huge ? MADV_HUGEPAGE : MADV_NOHUGEPAGE))
		exit(1);
	fill();
}

/* ---- One case ----------------------------------------------------------------------------------- */

struct verdict {
	uint32_t failed;	/* calls that were made to */
	char violation[80];
	struct outcome outcome;
};

static const struct fault none = { .site = -1 };

/* Of gcc's counters, where scripts/coverage.py has built them in. */
extern void __gcov_dump(void) __attribute__((weak));

static uint32_t run(const struct scenario *scenario, struct fault fault, struct outcome *outcome)
{
	*outcome = (struct outcome){ .result = 0 };
	faults_arm(fault);
	scenario->run(outcome);
	return faults_disarm();
}

/* By what it says, has somebody else freed a page, or put one there? */
static bool says_so(int32_t site, int error)
{
	return site >= 0 && (error == ENOENT || error == EEXIST);
}

/* Does the call say what happened, and account for every byte? */
static const char *misleading(const struct outcome *outcome, struct fault fault)
{
	struct fault before = sites->list[fault.site].behind;

	if (outcome->bytes && outcome->done + outcome->told + outcome->gone != outcome->bytes)
		return "bytes are counted twice or not at all";
	if (outcome->gone && !says_so(fault.site, fault.error) &&
	    !says_so(before.site, before.error))
		return "it says that pages are gone";
	if (outcome->bytes && outcome->done != outcome->bytes && !outcome->gone &&
	    outcome->result >= 0 && !outcome->error)
		return "nothing says why bytes were left";
	return NULL;
}

/*
 * Once may be what the C library keeps for later, or a thread's stack that was
 * used further down than before. What grows with every repetition is a leak.
 */
static const char *grows(const struct scenario *scenario, struct fault fault,
			 const struct holdings *baseline, struct holdings *now)
{
	struct holdings last = *baseline;
	bool mapped = true, used = true, descriptors = true;
	struct outcome again;

	for (int i = 0; i < 4; i++) {
		mapped = mapped && now->mapped > last.mapped;
		used = used && now->used > last.used;
		descriptors = descriptors && now->descriptors > last.descriptors;
		if (!mapped && !used && !descriptors)
			return NULL;
		last = *now;
		run(scenario, fault, &again);
		threads_end();
		*now = held();
	}
	if (descriptors)
		return "a descriptor is left open";
	return used ? "memory is left" : "address space is left, empty";
}

static const char *check(const struct scenario *scenario, struct fault fault,
			 const struct state *before, struct verdict *verdict)
{
	struct holdings baseline = held(), now;
	struct outcome again;
	struct state after;
	const char *what;

	verdict->failed = run(scenario, fault, &verdict->outcome);
	if (!is_filled())
		return "bytes are not what they were";
	read_state(&after, scenario->policy);
	what = changed(before, &after, verdict->outcome.policy_lost);
	if (!what)
		what = misleading(&verdict->outcome, fault);
	if (what)
		return what;
	if (!threads_end())
		return "a thread is left";
	now = held();
	what = grows(scenario, fault, &baseline, &now);
	if (what)
		return what;
	/* And it works again. */
	run(scenario, none, &again);
	if (again.result < 0 || again.told || again.gone)
		return "it does not work any more afterwards";
	return is_filled() ? NULL : "bytes are not what they were, the time after";
}

/* cold: the fault hits the first run of all, in which things are remembered. */
static void child_main(const struct scenario *scenario, struct fault fault, bool cold, int pipe_end)
{
	struct verdict verdict = { .failed = 0 };
	struct outcome outcome = { .result = 0 };
	struct state before;
	const char *what = NULL;

	prctl(PR_SET_PDEATHSIG, SIGKILL);
	scenarios_begin();
	memory_begin(scenario->huge);
	if (!cold)
		run(scenario, none, &outcome);
	if (outcome.result < 0)
		snprintf(verdict.violation, sizeof(verdict.violation), "skip: %s",
			 strerror((int)-outcome.result));
	else if (fault.site >= 0 && threads_end()) {
		read_state(&before, scenario->policy);
		what = check(scenario, fault, &before, &verdict);
	} else {	/* helpers come by chance: let them */
		for (int i = 0; i < 20; i++)
			scenario->run(&outcome);
		run(scenario, none, &outcome);
	}
	if (what)
		snprintf(verdict.violation, sizeof(verdict.violation), "%s", what);
	raw_call(SYS_write, pipe_end, (long)&verdict, sizeof(verdict), 0, 0, 0);
	if (__gcov_dump)
		__gcov_dump();
	_exit(0);
}

/* Nothing but SIGKILL ends what blocks signals. */
static void in_child(const struct scenario *scenario, struct fault fault, bool cold,
		     struct verdict *verdict)
{
	int ends[2], status = 0;
	struct pollfd answer;
	bool answered;
	pid_t child;

	if (pipe(ends))
		exit(1);
	child = fork();
	if (!child) {
		close(ends[0]);
		child_main(scenario, fault, cold, ends[1]);
	}
	close(ends[1]);
	answer = (struct pollfd){ .fd = ends[0], .events = POLLIN };
	memset(verdict, 0, sizeof(*verdict));
	if (poll(&answer, 1, fault.site < 0 ? FIRST_PATIENCE_MS : PATIENCE_MS) <= 0) {
		kill(child, SIGKILL);
		snprintf(verdict->violation, sizeof(verdict->violation), "it hangs");
	}
	answered = read(ends[0], verdict, sizeof(*verdict)) == sizeof(*verdict);
	close(ends[0]);
	waitpid(child, &status, 0);
	if (!answered && !verdict->violation[0])
		snprintf(verdict->violation, sizeof(verdict->violation), "it died of signal %d",
			 WTERMSIG(status));
}

/* ---- All of them --------------------------------------------------------------------------------- */

static void print_case(const struct scenario *scenario, const struct site *site,
		       const struct fault *fault, const char *when, const struct verdict *verdict)
{
	const struct outcome *outcome = &verdict->outcome;
	const char *before = "";

	if (site->behind.site >= 0)
		before = kinds[sites->list[site->behind.site].kind].name;
	printf("%s\t%s\t", scenario->name, kinds[site->kind].name);
	for (int i = 0; i < DEPTH && site->chain[i]; i++)
		printf("%s%" PRIxPTR, i ? "," : "", file_address(site->chain[i]) - 1);
	printf("\t%d+%s\t%s\t%u\t%s\t%" PRId64 "\t%d\t%" PRIu64 "\t%" PRIu64 "\t%" PRIu64 "\n",
	       fault->error, before, when, verdict->failed, verdict->violation, outcome->result,
	       outcome->error, outcome->done, outcome->told, outcome->gone);
	fflush(stdout);
}

static void try_case(const struct scenario *scenario, const struct site *site, struct fault fault,
		     const char *when)
{
	struct verdict verdict;

	/* Some calls are made once in a process; helpers come by chance, and so do theirs. */
	for (int i = 0; i < 3; i++) {
		in_child(scenario, fault, i == 1, &verdict);
		if (verdict.failed || verdict.violation[0])
			break;
	}
	print_case(scenario, site, &fault, when, &verdict);
}

/* brief: one errno of each site, another one for each. */
static void try_site(const struct scenario *scenario, int32_t index, bool brief)
{
	const struct site site = sites->list[index];
	const int *errnos = kinds[site.kind].errnos;
	int count = 0;

	while (count < ERRNOS && errnos[count])
		count++;
	for (int i = 0; i < count; i++) {
		struct fault fault = { .site = index, .error = errnos[i] };
		uint32_t middle = site.behind.site < 0 ? site.hits / 2 : 0;

		/* EEXIST once made put_span() wait for itself. */
		if (brief && i != index % count && errnos[i] != EEXIST)
			continue;
		try_case(scenario, &site, fault, "first");
		if (brief)
			continue;
		if (middle) {
			fault.first = fault.last = middle;
			try_case(scenario, &site, fault, "middle");
		}
		fault.first = 0;
		fault.last = TRANSIENT - 1;
		try_case(scenario, &site, fault, "all");
	}
}

static void print_remark(const struct scenario *scenario, const char *remark)
{
	printf("%s\t-\t\t0+\t-\t0\t%s\t0\t0\t0\t0\t0\n", scenario->name, remark);
}

static void try_scenario(const struct scenario *scenario, bool brief)
{
	struct verdict verdict;

	sites->count = 0;
	in_child(scenario, none, false, &verdict);
	if (verdict.violation[0]) {
		print_remark(scenario, verdict.violation);
		return;
	}
	/* Sites that turn up behind a fault are tried as well. */
	for (uint32_t i = 0; i < sites->count; i++)
		try_site(scenario, (int32_t)i, brief);
	if (sites->count == SITES)
		print_remark(scenario, "too many sites");
}

/* --list, or [--brief] [parts of scenarios' names] */
int main(int argc, char **argv)
{
	bool brief = argc > 1 && !strcmp(argv[1], "--brief");
	bool list = argc > 1 && !strcmp(argv[1], "--list");
	int first = 1 + brief;

	sites = mmap(NULL, sizeof(*sites), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	if (sites == MAP_FAILED)
		return 2;
	for (const struct scenario *scenario = scenarios; scenario->name; scenario++) {
		bool wanted = first == argc;

		for (int i = first; i < argc; i++)
			wanted = wanted || strstr(scenario->name, argv[i]);
		if (list)
			puts(scenario->name);
		else if (wanted)
			try_scenario(scenario, brief);
	}
	return 0;
}
