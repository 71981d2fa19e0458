// SPDX-License-Identifier: Apache-2.0
/* Pace: helpers that do not help are sent away and tried once more; a rate is kept to. */
#include <string.h>
#include <time.h>

#include "pace.h"
#include "pages.h"
#include "test.h"

enum { WORKERS = 3, SHIFT = 12 };

#define LEFT (1ull << 40)

static struct pf_pace book;
static struct pace_slot slots[WORKERS];
static struct pace pace;

static void begin_anew(uint64_t alone_rate)
{
	memset(&book, 0, sizeof(book));
	memset(slots, 0, sizeof(slots));
	memset(&pace, 0, sizeof(pace));
	book.judge = 1;
	book.alone_rate = alone_rate;
	pace.book = &book;
	pace.slots = slots;
	pace.workers = WORKERS;
}

static void piece(uint32_t worker, uint64_t bytes, uint32_t shift)
{
	struct timespec time = { .tv_sec = 0, .tv_nsec = 2000000 };

	pace_begin(&pace, worker, bytes);
	nanosleep(&time, NULL);
	pace_end(&pace, worker, bytes, shift);
}

static void everyone_does_pieces(uint32_t shift)
{
	for (int i = 0; i < 2; i++)
		for (uint32_t worker = 0; worker < WORKERS; worker++)
			piece(worker, 1 << 20, shift);
}

/* Whatever the machine does meanwhile, a megabyte in 2 ms is far from either rate. */
static void together_is_slower(void)
{
	begin_anew(1ull << 60);
	pace_together(&pace);
	CHECK(!pace_judge(&pace, LEFT));	/* too early to say */
	CHECK(pace_go_on(&pace, 1));
	everyone_does_pieces(SHIFT);
	CHECK(!pace_judge(&pace, LEFT));
	CHECK(book.fell_back == 1);
	CHECK(!pace_go_on(&pace, 1) && pace_go_on(&pace, 0));
	CHECK(book.together_rate > 0 && book.together_rate < book.alone_rate);
}

static void together_is_quicker(void)
{
	begin_anew(1);
	pace_together(&pace);
	everyone_does_pieces(SHIFT);
	CHECK(!pace_judge(&pace, LEFT));
	CHECK(!book.fell_back && pace_go_on(&pace, 1) && book.together_rate > 1);
}

static void other_page_sizes_do_not_count(void)
{
	begin_anew(1ull << 60);
	pace_together(&pace);
	piece(0, 1 << 12, SHIFT);	/* what is compared */
	everyone_does_pieces(21);
	everyone_does_pieces(0);	/* a mixture */
	CHECK(!pace_judge(&pace, LEFT));
	CHECK(!book.fell_back && !book.together_rate);
}

static void nobody_asked(void)
{
	begin_anew(1ull << 60);
	book.judge = 0;
	CHECK(!pace_probe(&pace, LEFT));
	pace_together(&pace);
	everyone_does_pieces(SHIFT);
	CHECK(!pace_judge(&pace, LEFT) && !book.fell_back);
	begin_anew(1ull << 60);
	book.max_rate = 1000;	/* slow on purpose */
	pace_together(&pace);
	everyone_does_pieces(SHIFT);
	CHECK(!pace_judge(&pace, LEFT) && !book.fell_back);
}

static void a_first_piece_alone(void)
{
	begin_anew(0);
	CHECK(!pace_probe(&pace, 1 << 20));	/* not worth it */
	CHECK(pace_probe(&pace, 1ull << 30) == (1ull << 30) / 64 / (WORKERS - 1));
	piece(0, 1 << 20, SHIFT);
	pace_together(&pace);
	CHECK(book.alone_rate > 0 && book.alone_rate <= (1ull << 20) * 500);
	CHECK(!pace_probe(&pace, 1ull << 30));	/* known by now */
	everyone_does_pieces(SHIFT);
	CHECK(!pace_judge(&pace, LEFT) && book.together_rate > 0);
}

/* What all do at once, before a pause, says nothing of one alone. */
static void after_a_pause(void)
{
	uint64_t alone;

	a_first_piece_alone();
	alone = book.alone_rate;
	pace_together(&pace);
	CHECK(book.alone_rate == alone && pace_go_on(&pace, 1));
}

/* After a while alone the others get one more try, against what alone was then; the next is later. */
static void another_try(void)
{
	together_is_slower();
	pace_come(&pace, 1);
	for (int i = 0; i < 30; i++)
		piece(0, 1 << 20, SHIFT);
	CHECK(!pace_judge(&pace, LEFT));	/* a helper is still at its last piece */
	pace_go(&pace, 1);
	CHECK(!pace_judge(&pace, 1 << 20));	/* not worth it */
	CHECK(pace_judge(&pace, LEFT));
	pace_together(&pace);
	CHECK(book.alone_rate < 1ull << 60 && pace_go_on(&pace, 1));
	book.alone_rate = 1ull << 60;
	everyone_does_pieces(SHIFT);
	CHECK(!pace_judge(&pace, LEFT) && book.fell_back == 2);
	book.fell_back = 7;	/* 3.2 s, which is beyond what a stalled machine takes below */
	for (int i = 0; i < 30; i++)
		piece(0, 1 << 20, SHIFT);
	CHECK(!pace_judge(&pace, LEFT));
}

/* A judgement takes somebody who has helped. */
static void nobody_came(void)
{
	begin_anew(1ull << 60);
	pace_together(&pace);
	for (int i = 0; i < 4; i++)
		piece(0, 1 << 20, SHIFT);
	CHECK(!pace_judge(&pace, LEFT) && !book.fell_back && pace_go_on(&pace, 1));
}

static void a_rate_is_kept_to(void)
{
	uint64_t begun, until = 0;

	begin_anew(0);
	CHECK(pace_reserve(&pace, 1 << 20) == 0 && pace_piece(&pace, 1 << 30) == 1 << 30);
	book.max_rate = 100000000;
	CHECK(pace_piece(&pace, 1 << 30) == 2000000 && pace_piece(&pace, 4096) == 4096);
	begun = now_us();
	for (int i = 0; i < 10; i++)
		until = pace_reserve(&pace, 200000);	/* 2 ms each */
	CHECK(pace_reserve(&pace, 0) == 0);
	while (pace_sleep(until))
		;
	CHECK(now_us() - begun >= 20000);
	book.max_rate = 1;
	CHECK(pace_piece(&pace, 4096) == 1);
}

int main(void)
{
	together_is_slower();
	together_is_quicker();
	other_page_sizes_do_not_count();
	nobody_asked();
	after_a_pause();
	another_try();
	nobody_came();
	a_rate_is_kept_to();
	puts("pace: ok");
	return 0;
}
