// SPDX-License-Identifier: Apache-2.0
#include <string.h>
#include <time.h>

#include "crew.h"
#include "pace.h"
#include "pages.h"

enum {
	PROBE_SHARE = 64,	/* of the time that the probe may cost in all */
	PROBE_US = 300,		/* a shorter one says nothing */
	JUDGE_US = 4000,
	JUDGE_PIECES = 2,
	WORTH_IT = 92,		/* together must have this percentage of the rate alone */
	ALONE_US = 50000,	/* before the helpers get another try; doubled each time */
	ALONE_DOUBLED = 6,	/* so often: 3.2 s at most */
	WINDOW_US = 250000,	/* then a new account begins */
	LIMITED_US = 20000,	/* a piece takes at most so long at the rate allowed */
	SLEEP_US = 10000,
};

#define PROBE_BYTES_MIN (256u << 10)
#define TURN_BYTES_MIN (32u << 20)

static uint64_t load(const uint64_t *word)
{
	return __atomic_load_n(word, __ATOMIC_RELAXED);
}

static void store(uint64_t *word, uint64_t value)
{
	__atomic_store_n(word, value, __ATOMIC_RELAXED);
}

static uint64_t rate_of(uint64_t bytes, uint64_t us)
{
	return us ? (uint64_t)((double)bytes * 1e6 / (double)us) : 0;
}

static bool judges(const struct pace *pace)
{
	return pace->book->judge && !load(&pace->book->max_rate) && pace->workers > 1;
}

uint64_t pace_probe(const struct pace *pace, uint64_t bytes)
{
	uint64_t most;

	if (!judges(pace) || pace->book->alone_rate)
		return 0;
	most = bytes / PROBE_SHARE / (pace->workers - 1);
	return most < PROBE_BYTES_MIN ? 0 : most;
}

static struct pace_account done_by(const struct pace_slot *slot)
{
	struct pace_account done = {
		.bytes = load(&slot->done.bytes) - slot->base.bytes,
		.us = load(&slot->done.us) - slot->base.us,
		.pieces = load(&slot->done.pieces) - slot->base.pieces,
	};

	return done;
}

static void open_account(struct pace *pace)
{
	struct pace_slot *slot;

	for (slot = pace->slots; slot < pace->slots + pace->workers; slot++) {
		slot->base.bytes = load(&slot->done.bytes);
		slot->base.us = load(&slot->done.us);
		slot->base.pieces = load(&slot->done.pieces);
	}
	pace->since_us = now_us();
}

/* What worker 0 did alone since its account was opened becomes the measure. */
static void take_measure(struct pace *pace)
{
	struct pace_account done = done_by(&pace->slots[0]);

	if (done.us >= PROBE_US)
		pace->book->alone_rate = rate_of(done.bytes, done.us);
}

void pace_together(struct pace *pace)
{
	/* After a pause, or when the crew has called its helpers again, it is that of all. */
	if (judges(pace) && (!pace->turns || pace->alone))
		take_measure(pace);
	open_account(pace);
	pace->turns++;
	__atomic_store_n(&pace->alone, 0, __ATOMIC_RELAXED);
}

void pace_begin(struct pace *pace, uint32_t worker, uint64_t bytes)
{
	struct pace_slot *slot = &pace->slots[worker];

	store(&slot->piece, bytes);
	store(&slot->begun_us, now_us());
}

void pace_end(struct pace *pace, uint32_t worker, uint64_t bytes, uint32_t shift)
{
	struct pace_slot *slot = &pace->slots[worker];
	uint64_t us = now_us() - slot->begun_us;

	store(&slot->begun_us, 0);
	/* The caller's first piece says of which size the account is. */
	if (!worker && !__atomic_load_n(&pace->book->shift, __ATOMIC_RELAXED))
		__atomic_store_n(&pace->book->shift, shift, __ATOMIC_RELAXED);
	if (!bytes || !shift || shift != __atomic_load_n(&pace->book->shift, __ATOMIC_RELAXED))
		return;
	store(&slot->done.bytes, slot->done.bytes + bytes);
	store(&slot->done.us, slot->done.us + us);
	store(&slot->done.pieces, slot->done.pieces + 1);
}

void pace_come(struct pace *pace, uint32_t worker)
{
	if (worker)
		__atomic_fetch_add(&pace->helping, 1, __ATOMIC_RELAXED);
}

bool pace_go_on(const struct pace *pace, uint32_t worker)
{
	return !worker || !__atomic_load_n(&pace->alone, __ATOMIC_RELAXED);
}

void pace_leave(struct pace *pace)
{
	__atomic_fetch_add(&pace->book->helpers_left, 1, __ATOMIC_RELAXED);
}

uint32_t pace_helping(const struct pace *pace)
{
	return __atomic_load_n(&pace->helping, __ATOMIC_RELAXED);
}

void pace_go(struct pace *pace, uint32_t worker)
{
	if (worker)
		__atomic_fetch_sub(&pace->helping, 1, __ATOMIC_RELAXED);
}

/*
 * The rate of all together; false while it cannot be told. Each worker is
 * counted by its own time, so one that came late or waits between pieces does
 * not blur it. Who is at a piece for longer than that could take counts for
 * what it has finished in all that time.
 */
static bool rate_together(const struct pace *pace, uint64_t *rate)
{
	uint64_t alone = pace->book->alone_rate;
	uint64_t now = now_us();
	uint64_t pieces = 0;
	bool helped = false;
	uint32_t i;

	*rate = 0;
	for (i = 0; i < pace->workers; i++) {
		const struct pace_slot *slot = &pace->slots[i];
		struct pace_account done = done_by(slot);
		uint64_t begun = load(&slot->begun_us);
		uint64_t fair = (uint64_t)((double)load(&slot->piece) * pace->workers * 1e6 /
					   (double)alone);

		if (begun && begun < now && now - begun > fair)
			done.us += now - begun;
		else if (begun && !done.pieces)
			return false;	/* on its first piece: patience */
		*rate += rate_of(done.bytes, done.us);
		pieces += done.pieces;
		helped |= i && (begun || done.pieces);
	}
	return helped && pieces >= JUDGE_PIECES;
}

static void judge(struct pace *pace)
{
	uint64_t passed = now_us() - pace->since_us;
	uint64_t rate;

	if (passed < JUDGE_US || !pace->book->alone_rate ||
	    !done_by(&pace->slots[0]).pieces || !rate_together(pace, &rate))
		return;
	pace->book->together_rate = rate;
	if ((double)rate * 100 < (double)pace->book->alone_rate * WORTH_IT) {
		pace->book->fell_back++;
		__atomic_store_n(&pace->alone, 1, __ATOMIC_RELAXED);
		open_account(pace);
	} else if (passed >= WINDOW_US) {
		open_account(pace);
	}
}

bool pace_judge(struct pace *pace, uint64_t left)
{
	uint32_t doubled = pace->book->fell_back - 1;

	if (pace->workers < 2 || pace->turns < 1)
		return false;
	if (!pace->alone) {
		if (judges(pace))
			judge(pace);
		return !pace->alone && crew_call_again(left);
	}
	if (doubled > ALONE_DOUBLED)
		doubled = ALONE_DOUBLED;
	return now_us() - pace->since_us >= (uint64_t)ALONE_US << doubled &&
	       left >= TURN_BYTES_MIN && !pace_helping(pace);
}

uint64_t rate_reserve(uint64_t max_rate, uint64_t *due_us, uint64_t bytes)
{
	uint64_t due = load(due_us);
	uint64_t now, until;

	if (!max_rate || !bytes)
		return 0;
	do {
		now = now_us();
		until = (due > now ? due : now) +
			(uint64_t)((double)bytes * 1e6 / (double)max_rate);
	} while (!__atomic_compare_exchange_n(due_us, &due, until, false,
					      __ATOMIC_RELAXED, __ATOMIC_RELAXED));
	return until;
}

uint64_t pace_reserve(struct pace *pace, uint64_t bytes)
{
	return rate_reserve(load(&pace->book->max_rate), &pace->book->due_us, bytes);
}

bool pace_paused(const uint32_t *pause)
{
	return __atomic_load_n(pause, __ATOMIC_RELAXED);
}

void pace_nap(void)
{
	pace_sleep(now_us() + SLEEP_US);
}

bool pace_sleep(uint64_t until_us)
{
	uint64_t now = now_us();
	struct timespec time = { .tv_sec = 0, .tv_nsec = 0 };

	if (until_us <= now)
		return false;
	time.tv_nsec = (long)(until_us - now < SLEEP_US ? until_us - now : SLEEP_US) * 1000;
	nanosleep(&time, NULL);
	return true;
}

uint64_t rate_piece(uint64_t max_rate, uint64_t bytes)
{
	uint64_t most = max_rate / (1000000 / LIMITED_US);

	return max_rate && most < bytes ? (most ? most : 1) : bytes;
}

uint64_t pace_piece(const struct pace *pace, uint64_t bytes)
{
	return rate_piece(load(&pace->book->max_rate), bytes);
}
