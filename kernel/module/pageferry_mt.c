// SPDX-License-Identifier: GPL-2.0-only
/*
 * Copies by several threads in page migration, for a running kernel 6.12 with
 * CONFIG_LIVEPATCH: folio_mc_copy() is replaced by one that shares the copy of
 * a large folio with work items. Only folios of 512 KiB and more, one by one;
 * batches of base pages need the patched kernel (kernel/patches).
 *
 * The same bargain as there: all claim chunks from a counter, smaller ones
 * towards the end, and the caller takes back what has not begun. Which CPUs are
 * idle is nothing that a module may ask, so the work items are unbound, and the
 * scheduler puts them where there is room.
 */

#include <linux/completion.h>
#include <linux/highmem.h>
#include <linux/livepatch.h>
#include <linux/mm.h>
#include <linux/module.h>
#include <linux/preempt.h>
#include <linux/sched.h>
#include <linux/sched/clock.h>
#include <linux/sizes.h>
#include <linux/sysctl.h>
#include <linux/workqueue.h>

#define COPY_THREADS_MAX	8
#define COPY_THREAD_PAGES	(SZ_256K >> PAGE_SHIFT)
#define COPY_CHUNK_PAGES_MAX	DIV_ROUND_UP(SZ_64K, PAGE_SIZE)
#define COPY_CHUNK_PAGES_MIN	DIV_ROUND_UP(SZ_16K, PAGE_SIZE)

/* For the chunks in hand at the end the caller looks on for so long before it sleeps. */
#define COPY_SPIN_NS		(100 * NSEC_PER_USEC)

struct copy_job {
	struct folio *dst;
	struct folio *src;
	unsigned int nr_pages;
	unsigned int threads;	/* the caller and the work items */
	int error;
	atomic_t next;		/* first page that nobody has claimed */
	atomic_t busy;		/* of the threads, those that are not done */
	struct completion done;	/* the last of them, if it was not the caller */
};

struct copy_work {
	struct work_struct work;
	struct copy_job *job;
};

static unsigned int mt_page_copy;
static unsigned int mt_page_copy_threads = 4;
static const unsigned int copy_threads_max = COPY_THREADS_MAX;
static struct workqueue_struct *copy_wq;

/* Claim some pages from the first on that nobody has claimed: how many. */
static unsigned int claim_chunk(struct copy_job *job, unsigned int *first)
{
	int next = atomic_read(&job->next);
	unsigned int left, chunk;

	do {
		left = job->nr_pages - next;
		if (!left)
			return 0;
		chunk = clamp(left / (2 * job->threads), COPY_CHUNK_PAGES_MIN,
			      COPY_CHUNK_PAGES_MAX);
		chunk = min(chunk, left);
	} while (!atomic_try_cmpxchg(&job->next, &next, next + chunk));

	*first = next;
	return chunk;
}

static void copy_chunks(struct copy_job *job)
{
	unsigned int page, chunk;

	while (!READ_ONCE(job->error) && (chunk = claim_chunk(job, &page))) {
		for (; chunk; chunk--, page++) {
			if (copy_mc_highpage(folio_page(job->dst, page),
					     folio_page(job->src, page))) {
				WRITE_ONCE(job->error, -EHWPOISON);
				return;
			}
			cond_resched();
		}
	}
}

static void copy_work_fn(struct work_struct *work)
{
	struct copy_job *job = container_of(work, struct copy_work, work)->job;

	copy_chunks(job);
	/* Both are on the caller's stack, and gone after this. */
	if (atomic_dec_and_test(&job->busy))
		complete(&job->done);
}

/* Wait for the work items that have begun, and take back those that have not. */
static void finish_job(struct copy_job *job, struct copy_work *works,
		       unsigned int nr_works)
{
	unsigned int done = 1, i;	/* the caller */
	u64 end;

	for (i = 0; i < nr_works; i++)
		done += cancel_work(&works[i].work);
	if (!atomic_sub_and_test(done, &job->busy)) {
		end = local_clock() + COPY_SPIN_NS;
		while (!completion_done(&job->done) && !need_resched() &&
		       local_clock() < end)
			cpu_relax();
		wait_for_completion(&job->done);
	}
	for (i = 0; i < nr_works; i++)
		destroy_work_on_stack(&works[i].work);
}

static int copy_by_several(struct folio *dst, struct folio *src,
			   unsigned int threads)
{
	struct copy_work works[COPY_THREADS_MAX - 1];
	struct copy_job job = {
		.dst = dst,
		.src = src,
		.nr_pages = folio_nr_pages(src),
		.threads = threads,
		.busy = ATOMIC_INIT(threads),
	};
	unsigned int i;

	init_completion(&job.done);
	for (i = 0; i < threads - 1; i++) {
		INIT_WORK_ONSTACK(&works[i].work, copy_work_fn);
		works[i].job = &job;
		queue_work_node(folio_nid(i % 2 ? src : dst), copy_wq, &works[i].work);
	}
	copy_chunks(&job);
	finish_job(&job, works, threads - 1);
	return job.error;
}

/* Order-0 folios may come here under a spinlock, larger ones may sleep. */
static int live_folio_mc_copy(struct folio *dst, struct folio *src)
{
	unsigned int nr_pages = folio_nr_pages(src);
	unsigned int threads = min(nr_pages / COPY_THREAD_PAGES,
				   READ_ONCE(mt_page_copy_threads));
	unsigned int i = 0;

	if (READ_ONCE(mt_page_copy) && threads > 1 && preemptible())
		return copy_by_several(dst, src, threads);

	for (;;) {
		if (copy_mc_highpage(folio_page(dst, i), folio_page(src, i)))
			return -EHWPOISON;
		if (++i == nr_pages)
			return 0;
		cond_resched();
	}
}

static struct klp_func funcs[] = {
	{
		.old_name = "folio_mc_copy",
		.new_func = live_folio_mc_copy,
	},
	{ }
};

static struct klp_object objs[] = {
	{
		.funcs = funcs,	/* of vmlinux */
	},
	{ }
};

static struct klp_patch patch = {
	.mod = THIS_MODULE,
	.objs = objs,
};

static struct ctl_table copy_table[] = {
	{
		.procname	= "mt_page_copy",
		.data		= &mt_page_copy,
		.maxlen		= sizeof(mt_page_copy),
		.mode		= 0644,
		.proc_handler	= proc_douintvec_minmax,
		.extra1		= SYSCTL_ZERO,
		.extra2		= SYSCTL_ONE,
	},
	{
		.procname	= "mt_page_copy_threads",
		.data		= &mt_page_copy_threads,
		.maxlen		= sizeof(mt_page_copy_threads),
		.mode		= 0644,
		.proc_handler	= proc_douintvec_minmax,
		.extra1		= SYSCTL_ONE,
		.extra2		= (void *)&copy_threads_max,
	},
};

static struct ctl_table_header *copy_sysctl;

static int __init pageferry_mt_init(void)
{
	int error;

	/* WQ_SYSFS: /sys/devices/virtual/workqueue/pageferry_mt/nice */
	copy_wq = alloc_workqueue("pageferry_mt",
				  WQ_UNBOUND | WQ_MEM_RECLAIM | WQ_SYSFS, 0);
	if (!copy_wq)
		return -ENOMEM;
	/* Fails on a kernel that has the tunable itself: it needs no module. */
	copy_sysctl = register_sysctl("vm", copy_table);
	if (!copy_sysctl) {
		error = -EEXIST;
		goto no_sysctl;
	}
	error = klp_enable_patch(&patch);
	if (error)
		goto no_patch;
	return 0;

no_patch:
	unregister_sysctl_table(copy_sysctl);
no_sysctl:
	destroy_workqueue(copy_wq);
	return error;
}

/*
 * Only once the livepatch is off and no task is in live_folio_mc_copy(). A work
 * item may still be on its way out of copy_work_fn(): destroying the queue waits
 * for it.
 */
static void __exit pageferry_mt_exit(void)
{
	unregister_sysctl_table(copy_sysctl);
	destroy_workqueue(copy_wq);
}

module_init(pageferry_mt_init);
module_exit(pageferry_mt_exit);
MODULE_DESCRIPTION("Copies by several threads in page migration");
MODULE_AUTHOR("pageferry developers");
MODULE_LICENSE("GPL");
MODULE_INFO(livepatch, "Y");
