// SPDX-License-Identifier: Apache-2.0
/*
 * A plugin for QEMU's emulation that tells how long something takes in
 * instructions when each CPU of the guest has one of its own: the critical path.
 *
 * The guest marks a begin and an end by NOPs with a number in them. In between,
 * each CPU has a clock that goes on by 1 with each of its instructions, and no
 * CPU may be ahead of another that runs by more than LEAD: it waits, as host
 * threads do not run at one pace. A CPU that wakes up begins where the others
 * are. What the guest's begin and end read is the marking CPU's clock, its
 * sleeps included.
 *
 * QEMU has no package with the header, so here are the few prototypes
 * (docs/devel/tcg-plugins of QEMU, version 1 of the interface).
 */
#include <inttypes.h>
#include <sched.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define EXPORT __attribute__((visibility("default")))

struct qemu_plugin_tb;
struct qemu_plugin_insn;
enum { NO_REGISTERS };
typedef uint64_t plugin_id;

size_t qemu_plugin_tb_n_insns(const struct qemu_plugin_tb *tb);
struct qemu_plugin_insn *qemu_plugin_tb_get_insn(const struct qemu_plugin_tb *tb, size_t i);
const void *qemu_plugin_insn_data(const struct qemu_plugin_insn *insn);
size_t qemu_plugin_insn_size(const struct qemu_plugin_insn *insn);
void qemu_plugin_register_vcpu_tb_trans_cb(plugin_id id,
					   void (*cb)(plugin_id id, struct qemu_plugin_tb *tb));
void qemu_plugin_register_vcpu_tb_exec_cb(struct qemu_plugin_tb *tb,
					  void (*cb)(unsigned int cpu, void *data), int flags,
					  void *data);
void qemu_plugin_register_vcpu_insn_exec_cb(struct qemu_plugin_insn *insn,
					    void (*cb)(unsigned int cpu, void *data), int flags,
					    void *data);
void qemu_plugin_register_vcpu_init_cb(plugin_id id, void (*cb)(plugin_id id, unsigned int cpu));
void qemu_plugin_register_vcpu_idle_cb(plugin_id id, void (*cb)(plugin_id id, unsigned int cpu));
void qemu_plugin_register_vcpu_resume_cb(plugin_id id, void (*cb)(plugin_id id, unsigned int cpu));

EXPORT int qemu_plugin_version = 1;
EXPORT int qemu_plugin_install(plugin_id id, const void *info, int argc, char **argv);

enum {
	CPUS_MAX = 64,
	LEAD = 4096,		/* instructions, about what an interrupt takes */
	PATIENCE_NS = 50000000,	/* for a CPU that waits for the host: a device, a lock of QEMU */
};

/* nopl 0x50460000 + number(%rax): number 2n begins what is called n, 2n + 1 ends it. */
static const uint8_t mark_code[] = { 0x0f, 0x1f, 0x80 };
static const uint8_t mark_magic[] = { 0x46, 0x50 };

static struct cpu {
	uint64_t clock;		/* of instructions, and sleeps, since the begin */
	uint64_t ran;		/* instructions alone */
	uint64_t limit;		/* of the clock, up to which nobody need be asked */
	bool awake;
	char apart[64];
} cpus[CPUS_MAX];
static unsigned int n_cpus;
static bool measuring;
static uint64_t gave_up;
static FILE *output;

static uint64_t load(const uint64_t *word)
{
	return __atomic_load_n(word, __ATOMIC_RELAXED);
}

static void store(uint64_t *word, uint64_t value)
{
	__atomic_store_n(word, value, __ATOMIC_RELAXED);
}

static uint64_t now_ns(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return (uint64_t)now.tv_sec * 1000000000 + (uint64_t)now.tv_nsec;
}

/* The slowest clock of the other CPUs that run; UINT64_MAX when none does. */
static uint64_t slowest(unsigned int self)
{
	uint64_t least = UINT64_MAX;

	for (unsigned int i = 0; i < n_cpus; i++) {
		uint64_t clock = load(&cpus[i].clock);

		if (i != self && __atomic_load_n(&cpus[i].awake, __ATOMIC_RELAXED) && clock < least)
			least = clock;
	}
	return least;
}

static void keep_pace(unsigned int self)
{
	struct cpu *cpu = &cpus[self];
	uint64_t until = 0, least;

	while ((least = slowest(self)) != UINT64_MAX && load(&cpu->clock) > least + LEAD) {
		if (!until)
			until = now_ns() + PATIENCE_NS;
		else if (now_ns() > until) {
			__atomic_fetch_add(&gave_up, 1, __ATOMIC_RELAXED);
			break;
		}
		sched_yield();
	}
	store(&cpu->limit, load(&cpu->clock) + LEAD / 2);
}

static void block_runs(unsigned int self, void *instructions)
{
	struct cpu *cpu = &cpus[self];

	if (!__atomic_load_n(&measuring, __ATOMIC_RELAXED))
		return;
	/* Not load, add and store: a begin on another CPU may come in between. */
	__atomic_fetch_add(&cpu->ran, (uintptr_t)instructions, __ATOMIC_RELAXED);
	if (__atomic_add_fetch(&cpu->clock, (uintptr_t)instructions, __ATOMIC_RELAXED) >
	    load(&cpu->limit))
		keep_pace(self);
}

static void begin(void)
{
	for (unsigned int i = 0; i < n_cpus; i++) {
		store(&cpus[i].clock, 0);
		store(&cpus[i].ran, 0);
		store(&cpus[i].limit, 0);
	}
	store(&gave_up, 0);
	__atomic_store_n(&measuring, true, __ATOMIC_SEQ_CST);
}

static void end(unsigned int self, unsigned int name)
{
	if (!__atomic_exchange_n(&measuring, false, __ATOMIC_SEQ_CST))
		return;
	fprintf(output, "%u %" PRIu64 " %" PRIu64, name, load(&cpus[self].clock), load(&gave_up));
	for (unsigned int i = 0; i < n_cpus; i++)
		fprintf(output, " %" PRIu64, load(&cpus[i].ran));
	fputc('\n', output);
	fflush(output);
}

static void mark_runs(unsigned int self, void *number)
{
	unsigned int mark = (unsigned int)(uintptr_t)number;

	if (mark % 2)
		end(self, mark / 2);
	else
		begin();
}

static void translate(plugin_id id, struct qemu_plugin_tb *tb)
{
	size_t count = qemu_plugin_tb_n_insns(tb);

	(void)id;
	qemu_plugin_register_vcpu_tb_exec_cb(tb, block_runs, NO_REGISTERS, (void *)count);
	for (size_t i = 0; i < count; i++) {
		struct qemu_plugin_insn *insn = qemu_plugin_tb_get_insn(tb, i);
		const uint8_t *code = qemu_plugin_insn_data(insn);

		if (qemu_plugin_insn_size(insn) == 7 && !memcmp(code, mark_code, 3) &&
		    !memcmp(code + 5, mark_magic, 2))
			qemu_plugin_register_vcpu_insn_exec_cb(insn, mark_runs, NO_REGISTERS,
							       (void *)(uintptr_t)(code[3] |
										   code[4] << 8));
	}
}

static void appears(plugin_id id, unsigned int self)
{
	(void)id;
	if (self >= CPUS_MAX)
		abort();	/* the lab has asked for fewer */
	cpus[self].awake = true;
	if (self >= n_cpus)
		n_cpus = self + 1;
}

static void sleeps(plugin_id id, unsigned int self)
{
	(void)id;
	__atomic_store_n(&cpus[self].awake, false, __ATOMIC_RELAXED);
}

/* Its time has passed as that of the others. */
static void wakes(plugin_id id, unsigned int self)
{
	struct cpu *cpu = &cpus[self];
	uint64_t most = load(&cpu->clock);

	(void)id;
	for (unsigned int i = 0; i < n_cpus; i++) {
		uint64_t clock = load(&cpus[i].clock);

		if (__atomic_load_n(&cpus[i].awake, __ATOMIC_RELAXED) && clock > most)
			most = clock;
	}
	store(&cpu->clock, most);
	__atomic_store_n(&cpu->awake, true, __ATOMIC_RELAXED);
}

int qemu_plugin_install(plugin_id id, const void *info, int argc, char **argv)
{
	(void)info;
	if (argc != 1 || strncmp(argv[0], "output=", 7))
		return -1;
	output = fopen(argv[0] + 7, "we");
	if (!output)
		return -1;
	qemu_plugin_register_vcpu_init_cb(id, appears);
	qemu_plugin_register_vcpu_idle_cb(id, sleeps);
	qemu_plugin_register_vcpu_resume_cb(id, wakes);
	qemu_plugin_register_vcpu_tb_trans_cb(id, translate);
	return 0;
}
