// SPDX-License-Identifier: Apache-2.0
#include <errno.h>
#include <fcntl.h>
#include <linux/futex.h>
#include <pthread.h>
#include <sched.h>
#include <stdarg.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include "calls.h"
#include "interposer.h"
#include "mapping.h"
#include "userfault.h"

enum {
	MMAP, MUNMAP, MREMAP, MADVISE, OPEN, FSTAT, READ, PREAD, UFFD, UFFD_DEVICE, API, REGISTER,
	UNREGISTER, WAKE, MOVE, COPY, WRITEPROTECT, SCAN, QUERY, MOVE_PAGES, MBIND, MIGRATE,
	GET_POLICY, SET_POLICY, VM_READ, VM_WRITE, WRITE, SET_SCHEDULER, GET_SCHEDULER, SET_AFFINITY,
	GET_AFFINITY, SET_PRIORITY, THREAD, MALLOC, CALLOC, NONE,
};

/* The man pages' errnos, and what fs/userfaultfd.c and mm/ return. ENOSYS, EPERM: seccomp. */
const struct kind kinds[] = {
	[MMAP] = { "mmap", { ENOMEM, EAGAIN, EINVAL, EPERM, EACCES, ENFILE, ENODEV, EINTR } },
	[MUNMAP] = { "munmap", { ENOMEM, EINVAL, EINTR } },
	[MREMAP] = { "mremap", { ENOMEM, EAGAIN, EFAULT, EINVAL, EINTR } },
	[MADVISE] = { "madvise", { EINVAL, ENOMEM, EAGAIN, EACCES, EBADF, EFAULT, EIO, EPERM, EINTR,
				   EHWPOISON } },
	[OPEN] = { "open", { EMFILE, ENFILE, ENOENT, EACCES, ENOMEM, ELOOP, EINTR } },
	[FSTAT] = { "fstat", { EIO, ENOMEM, EOVERFLOW } },
	[READ] = { "read", { EINTR, EIO, EAGAIN } },
	[PREAD] = { "pread", { EINTR, EIO, ESRCH } },
	[UFFD] = { "userfaultfd", { EPERM, ENOSYS, EMFILE, ENFILE, ENOMEM, EINVAL } },
	[UFFD_DEVICE] = { "USERFAULTFD_IOC_NEW", { EMFILE, ENOMEM, ENOTTY } },
	[API] = { "UFFDIO_API", { EINVAL, EPERM, EFAULT } },
	[REGISTER] = { "UFFDIO_REGISTER", { ENOMEM, EINVAL, EBUSY, EPERM, EFAULT } },
	[UNREGISTER] = { "UFFDIO_UNREGISTER", { ENOMEM, EINVAL, EFAULT } },
	[WAKE] = { "UFFDIO_WAKE", { EINVAL, EFAULT } },
	[MOVE] = { "UFFDIO_MOVE", { EAGAIN, EBUSY, EEXIST, ENOENT, ENOMEM, EINVAL, EFAULT, ESRCH,
				    EINTR, EHWPOISON } },
	[COPY] = { "UFFDIO_COPY", { EAGAIN, ENOMEM, EEXIST, ENOENT, EINVAL, EFAULT, ENOSPC, ESRCH,
				    EINTR } },
	[WRITEPROTECT] = { "UFFDIO_WRITEPROTECT", { EAGAIN, EINVAL, ENOENT, EFAULT, EINTR, ESRCH } },
	[SCAN] = { "PAGEMAP_SCAN", { ENOTTY, EINVAL, EFAULT, ENOMEM, EINTR } },
	[QUERY] = { "PROCMAP_QUERY", { ENOTTY, EINVAL, ENOENT, EFAULT, ESRCH, EINTR } },
	[MOVE_PAGES] = { "move_pages", { NOT_MOVED, ENOMEM, EPERM, ENOSYS, ESRCH, EINVAL, ENODEV,
					 EACCES, EFAULT, E2BIG, ENOENT, EINTR } },
	[MBIND] = { "mbind", { EPERM, ENOSYS, EINVAL, ENOMEM, EIO, EFAULT, EINTR } },
	[MIGRATE] = { "migrate_pages", { EPERM, ENOSYS, EINVAL, ESRCH, ENOMEM, EFAULT, EBUSY } },
	[GET_POLICY] = { "get_mempolicy", { EPERM, ENOSYS, EINVAL, EFAULT } },
	[SET_POLICY] = { "set_mempolicy", { EPERM, ENOSYS, EINVAL, ENOMEM, EFAULT } },
	[VM_READ] = { "process_vm_readv", { EFAULT, ENOMEM, EPERM, ENOSYS, ESRCH } },
	[VM_WRITE] = { "process_vm_writev", { EFAULT, ENOMEM, EPERM, ENOSYS, ESRCH } },
	[WRITE] = { "write", { ENOSPC, EIO, EINTR } },
	[SET_SCHEDULER] = { "sched_setscheduler", { EPERM, EINVAL, ESRCH, EBUSY } },
	[GET_SCHEDULER] = { "sched_getscheduler", { EPERM, ESRCH, EINVAL } },
	[SET_AFFINITY] = { "sched_setaffinity", { EINVAL, EPERM, ESRCH, EFAULT } },
	[GET_AFFINITY] = { "sched_getaffinity", { EINVAL, ESRCH, EFAULT } },
	[SET_PRIORITY] = { "setpriority", { EACCES, EPERM, ESRCH } },
	[THREAD] = { "pthread_create", { EAGAIN, EPERM, EINVAL } },
	[MALLOC] = { "malloc", { ENOMEM } },
	[CALLOC] = { "calloc", { ENOMEM } },
};

extern char __executable_start[], etext[];

struct sites *sites;

static struct fault armed = { .site = -1 }, before = { .site = -1 };
static uint32_t is_armed;
static uint32_t failed;

static struct {
	uintptr_t start;
	uintptr_t end;
	uint8_t *moved;		/* by page */
} second;

uintptr_t file_address(uintptr_t address)
{
	return address - (uintptr_t)__executable_start;
}

void faults_arm(struct fault fault)
{
	armed = fault;
	before = (struct fault){ .site = -1 };
	if (fault.site >= 0)
		before = sites->list[fault.site].behind;
	failed = 0;
	for (uint32_t i = 0; i < sites->count; i++)
		sites->list[i].hits = 0;
	__atomic_store_n(&is_armed, 1, __ATOMIC_RELEASE);
}

uint32_t faults_disarm(void)
{
	__atomic_store_n(&is_armed, 0, __ATOMIC_RELEASE);
	return failed;
}

/* Return addresses from here outwards, as long as they are in this program. */
static void walk(uintptr_t *frame, uintptr_t *chain)
{
	for (int i = 0; i < DEPTH; i++) {
		uintptr_t *outer = (uintptr_t *)frame[0];

		chain[i] = 0;
		if (frame[1] < (uintptr_t)__executable_start || frame[1] >= (uintptr_t)etext)
			return;
		chain[i] = frame[1];
		if (outer <= frame || (uintptr_t)outer - (uintptr_t)frame > 1 << 20) {
			if (i + 1 < DEPTH)
				chain[i + 1] = 0;
			return;
		}
		frame = outer;
	}
}

static uint32_t find_site(const uintptr_t *chain, uint32_t kind)
{
	uint32_t i;

	while (__atomic_exchange_n(&sites->lock, 1, __ATOMIC_ACQUIRE))
		sched_yield();
	for (i = 0; i < sites->count; i++)
		if (sites->list[i].kind == kind &&
		    !memcmp(sites->list[i].chain, chain, sizeof(sites->list[i].chain)))
			break;
	if (i == sites->count && i < SITES) {
		memcpy(sites->list[i].chain, chain, sizeof(sites->list[i].chain));
		sites->list[i].kind = kind;
		sites->list[i].hits = 0;
		sites->list[i].behind = armed;
		sites->count++;
	}
	__atomic_store_n(&sites->lock, 0, __ATOMIC_RELEASE);
	return i;
}

static bool meant(const struct fault *fault, uint32_t site, uint32_t hit)
{
	return (int32_t)site == fault->site && hit >= fault->first && hit <= fault->last;
}

/* The errno to fail with, or 0. frame: that of the function that stands for the call. */
static int fault(uint32_t kind, void *frame)
{
	uintptr_t chain[DEPTH] = { 0 };
	uint32_t site, hit;

	if (kind == NONE || !__atomic_load_n(&is_armed, __ATOMIC_ACQUIRE))
		return 0;
	walk(frame, chain);
	site = find_site(chain, kind);
	if (site == SITES)
		return 0;
	hit = __atomic_fetch_add(&sites->list[site].hits, 1, __ATOMIC_RELAXED);
	if (meant(&before, site, hit))
		return before.error;
	if (!meant(&armed, site, hit))
		return 0;
	__atomic_fetch_add(&failed, 1, __ATOMIC_RELAXED);
	return armed.error;
}

#define HERE __builtin_frame_address(0)

/* ---- Two nodes played by one ---------------------------------------------------------- */

void second_node_begin(const void *memory, size_t bytes)
{
	second.start = (uintptr_t)memory;
	second.end = second.start + bytes;
	second.moved = (uint8_t *)raw_call(SYS_mmap, 0, (long)(bytes >> 12), PROT_READ | PROT_WRITE,
					   MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
}

void second_node_end(void)
{
	raw_call(SYS_munmap, (long)second.moved, (long)((second.end - second.start) >> 12), 0, 0, 0,
		 0);
	second.start = second.end = 0;
}

static long play_move_pages(long pid, long count, long pages, long nodes, long status, long flags)
{
	const uintptr_t *page = (const uintptr_t *)pages;
	int32_t *answer = (int32_t *)status;
	long result = raw_call(SYS_move_pages, pid, count, pages, nodes, status, flags);

	for (long i = 0; i < count && !result && second.end; i++) {
		uint8_t *moved = second.moved + ((page[i] - second.start) >> 12);

		if (page[i] < second.start || page[i] >= second.end || answer[i] < 0)
			continue;
		if (nodes)
			*moved = 1;
		else if (!*moved)
			answer[i] = 1;
	}
	return result;
}

/* ---- System calls ------------------------------------------------------------------------ */

static uint32_t kind_of(long number)
{
	switch (number) {
	case SYS_move_pages:
		return MOVE_PAGES;
	case SYS_mbind:
		return MBIND;
	case SYS_migrate_pages:
		return MIGRATE;
	case SYS_get_mempolicy:
		return GET_POLICY;
	case SYS_set_mempolicy:
		return SET_POLICY;
	case SYS_userfaultfd:
		return UFFD;
	case SYS_process_vm_readv:
		return VM_READ;
	case SYS_process_vm_writev:
		return VM_WRITE;
	case SYS_openat:
		return OPEN;
	case SYS_write:
		return WRITE;
	default:
		return NONE;
	}
}

static long make_call(int error, long number, long a, long b, long c, long d, long e, long f)
{
	/* As the kernel does when a group of pages would not go: nothing is written. */
	if (error == NOT_MOVED)
		return d ? (b + 1) / 2 : play_move_pages(a, b, c, d, e, f);
	if (error)
		return -error;
	if (number == SYS_move_pages)
		return play_move_pages(a, b, c, d, e, f);
	return raw_call(number, a, b, c, d, e, f);
}

/* What calls.h has in place of its own. */
long interposed_call(long number, long a, long b, long c, long d, long e, long f);
long interposed_call(long number, long a, long b, long c, long d, long e, long f)
{
	return make_call(fault(kind_of(number), HERE), number, a, b, c, d, e, f);
}

long __wrap_syscall(long number, long a, long b, long c, long d, long e, long f);
long __wrap_syscall(long number, long a, long b, long c, long d, long e, long f)
{
	long result = make_call(fault(kind_of(number), HERE), number, a, b, c, d, e, f);

	if ((unsigned long)result < -4095ul)
		return result;
	errno = (int)-result;
	return -1;
}

#define WRAP(type, failure, name, kind, parameters, arguments) \
	type __real_##name parameters;                         \
	type __wrap_##name parameters;                         \
	type __wrap_##name parameters                          \
	{                                                      \
		int error = fault(kind, HERE);                 \
                                                               \
		if (!error)                                    \
			return __real_##name arguments;        \
		errno = error;                                 \
		return failure;                                \
	}

WRAP(void *, MAP_FAILED, mmap64, MMAP,
     (void *start, size_t bytes, int protection, int flags, int fd, off_t offset),
     (start, bytes, protection, flags, fd, offset))
WRAP(int, -1, munmap, MUNMAP, (void *start, size_t bytes), (start, bytes))
WRAP(int, -1, madvise, MADVISE, (void *start, size_t bytes, int advice), (start, bytes, advice))
WRAP(int, -1, fstat64, FSTAT, (int fd, struct stat64 *about), (fd, about))
WRAP(ssize_t, -1, read, READ, (int fd, void *to, size_t bytes), (fd, to, bytes))
WRAP(ssize_t, -1, pread64, PREAD, (int fd, void *to, size_t bytes, off_t offset),
     (fd, to, bytes, offset))
WRAP(int, -1, sched_setscheduler, SET_SCHEDULER,
     (pid_t pid, int policy, const struct sched_param *param), (pid, policy, param))
WRAP(int, -1, sched_getscheduler, GET_SCHEDULER, (pid_t pid), (pid))
WRAP(int, -1, sched_setaffinity, SET_AFFINITY, (pid_t pid, size_t size, const cpu_set_t *set),
     (pid, size, set))
WRAP(int, -1, sched_getaffinity, GET_AFFINITY, (pid_t pid, size_t size, cpu_set_t *set),
     (pid, size, set))
WRAP(int, -1, setpriority, SET_PRIORITY, (__priority_which_t which, id_t who, int value),
     (which, who, value))
WRAP(void *, NULL, malloc, MALLOC, (size_t bytes), (bytes))
WRAP(void *, NULL, calloc, CALLOC, (size_t count, size_t bytes), (count, bytes))

int __real_open64(const char *path, int flags, ...);
int __wrap_open64(const char *path, int flags, ...);
int __wrap_open64(const char *path, int flags, ...)
{
	int error = fault(OPEN, HERE);

	if (!error)	/* nothing here creates a file */
		return __real_open64(path, flags);
	errno = error;
	return -1;
}

/* Where the kernel fails for want of memory, the target has been unmapped before. */
void *__real_mremap(void *from, size_t old_bytes, size_t bytes, int flags, void *to);
void *__wrap_mremap(void *from, size_t old_bytes, size_t bytes, int flags, void *to);
void *__wrap_mremap(void *from, size_t old_bytes, size_t bytes, int flags, void *to)
{
	int error = fault(MREMAP, HERE);

	if (!error)
		return __real_mremap(from, old_bytes, bytes, flags, to);
	if (flags & MREMAP_FIXED && (error == ENOMEM || error == EFAULT || error == EAGAIN))
		raw_call(SYS_munmap, (long)to, (long)bytes, 0, 0, 0, 0);
	errno = error;
	return MAP_FAILED;
}

static uint32_t kind_of_ioctl(unsigned long request)
{
	switch (request) {
	case _IO(0xAA, 0x00):
		return UFFD_DEVICE;
	case UFFDIO_API:
		return API;
	case UFFDIO_REGISTER:
		return REGISTER;
	case UFFDIO_UNREGISTER:
		return UNREGISTER;
	case UFFDIO_WAKE:
		return WAKE;
	case UFFDIO_MOVE:
		return MOVE;
	case UFFDIO_COPY:
		return COPY;
	case UFFDIO_WRITEPROTECT:
		return WRITEPROTECT;
	case MAPPING_QUERY:
		return QUERY;
	default:
		return SCAN;
	}
}

int __real_ioctl(int fd, unsigned long request, void *argument);

/* EEXIST as Linux 6.18 has it: one page was moved, and not counted. */
static void answer_move(int fd, struct uffdio_move *move, int error)
{
	if (error == EEXIST) {
		move->len = 4096;
		__real_ioctl(fd, UFFDIO_MOVE, move);
	}
	move->move = -error;
}

/* And here: there is a page, as it says. */
static void answer_copy(int fd, struct uffdio_copy *copy, int error)
{
	if (error == EEXIST) {
		copy->len = 4096;
		__real_ioctl(fd, UFFDIO_COPY, copy);
	}
	copy->copy = -error;
}

int __wrap_ioctl(int fd, unsigned long request, void *argument);
int __wrap_ioctl(int fd, unsigned long request, void *argument)
{
	uint32_t kind = kind_of_ioctl(request);
	/* userfault_changing() asks for nothing: there is nothing that could be in its way. */
	bool senseless = kind == COPY && !((struct uffdio_copy *)argument)->len;
	int error = senseless ? 0 : fault(kind, HERE);

	if (!error)
		return __real_ioctl(fd, request, argument);
	if (kind == MOVE)
		answer_move(fd, argument, error);
	if (kind == COPY)
		answer_copy(fd, argument, error);
	errno = error;
	return -1;
}

int __real_pthread_create(pthread_t *thread, const pthread_attr_t *attributes,
			  void *(*start)(void *), void *argument);
int __wrap_pthread_create(pthread_t *thread, const pthread_attr_t *attributes,
			  void *(*start)(void *), void *argument);
int __wrap_pthread_create(pthread_t *thread, const pthread_attr_t *attributes,
			  void *(*start)(void *), void *argument)
{
	int error = fault(THREAD, HERE);

	return error ? error : __real_pthread_create(thread, attributes, start, argument);
}
