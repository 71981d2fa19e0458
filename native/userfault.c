// SPDX-License-Identifier: Apache-2.0
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "userfault.h"

#ifndef USERFAULTFD_IOC_NEW	/* /dev/userfaultfd, Linux 6.1 */
#define USERFAULTFD_IOC_NEW _IO(0xAA, 0x00)
#endif

/*
 * Faults that the kernel takes on behalf of the program, in read(2) into the
 * range for one, must wait as its own do; with UFFD_USER_MODE_ONLY they would
 * fail. Two doors lead there: the system call (CAP_SYS_PTRACE, or
 * vm.unprivileged_userfaultfd=1) and the device file (its permissions).
 */
static int open_for_all_faults(void)
{
	int fd = (int)syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK);
	int error, device;

	if (fd >= 0)
		return fd;
	error = errno;
	if (error != EPERM && error != ENOSYS)
		return -error;
	device = open("/dev/userfaultfd", O_RDWR | O_CLOEXEC);
	if (device < 0)
		return -error;
	fd = ioctl(device, USERFAULTFD_IOC_NEW, O_CLOEXEC | O_NONBLOCK);
	close(device);
	return fd < 0 ? -error : fd;
}

static int shake_hands(int fd, uint64_t features, uint64_t *offered)
{
	struct uffdio_api api = { .api = UFFD_API, .features = features };

	if (ioctl(fd, UFFDIO_API, &api))
		return -errno;
	if (offered)
		*offered = api.features;
	return 0;
}

int userfault_probe(uint64_t *features)
{
	int fd = open_for_all_faults();
	int error;

	if (fd < 0)
		return fd;
	error = shake_hands(fd, 0, features);
	close(fd);
	return error;
}

int userfault_open(uint64_t features)
{
	int fd = open_for_all_faults();
	int error;

	if (fd < 0)
		return fd;
	error = shake_hands(fd, features, NULL);
	if (error) {
		close(fd);
		return error;
	}
	return fd;
}

int userfault_register(int fd, uint64_t start, uint64_t bytes, uint64_t mode)
{
	struct uffdio_register request = {
		.range = { .start = start, .len = bytes }, .mode = mode,
	};

	return ioctl(fd, UFFDIO_REGISTER, &request) ? -errno : 0;
}

int userfault_unregister(int fd, uint64_t start, uint64_t bytes)
{
	struct uffdio_range range = { .start = start, .len = bytes };

	return ioctl(fd, UFFDIO_UNREGISTER, &range) ? -errno : 0;
}

int userfault_wake(int fd, uint64_t start, uint64_t bytes)
{
	struct uffdio_range range = { .start = start, .len = bytes };

	return ioctl(fd, UFFDIO_WAKE, &range) ? -errno : 0;
}

int userfault_protect(int fd, uint64_t start, uint64_t bytes, bool on)
{
	struct uffdio_writeprotect request = {
		.range = { .start = start, .len = bytes },
		.mode = on ? UFFDIO_WRITEPROTECT_MODE_WP : 0,
	};
	int result;

	do {
		result = ioctl(fd, UFFDIO_WRITEPROTECT, &request) ? -errno : 0;
	} while (result == -EINTR);
	return result;
}

/*
 * EAGAIN with progress means: something ended it there, ask again and be told
 * what. EAGAIN without means that another thread is changing the mapping, and
 * waits for its message to be read.
 */
uint64_t userfault_move(int fd, uint64_t target, uint64_t source, uint64_t bytes, int *error)
{
	uint64_t done = 0;

	*error = 0;
	while (done < bytes) {
		struct uffdio_move request = {
			.dst = target + done, .src = source + done, .len = bytes - done,
		};

		if (!ioctl(fd, UFFDIO_MOVE, &request))
			return bytes;
		*error = errno;
		if (request.move > 0)
			done += (uint64_t)request.move;
		else if (*error != EINTR)
			return done;
	}
	*error = 0;
	return done;
}

/*
 * Not by UFFDIO_MOVE_MODE_ALLOW_SRC_HOLES: Linux 6.18 keeps an EAGAIN that it has met
 * inside, takes each later step for another one, and goes round a hole for ever.
 */
void userfault_move_some(int fd, uint64_t target, uint64_t source, uint64_t bytes, uint64_t page)
{
	uint64_t done = 0;

	while (done < bytes) {
		int error;

		done += userfault_move(fd, target + done, source + done, bytes - done, &error);
		if (error == EBUSY || error == EEXIST || error == ENOENT)
			done += page;
		else if (error && error != EAGAIN)
			return;
	}
}

uint64_t userfault_copy(int fd, uint64_t target, uint64_t source, uint64_t bytes, int *error)
{
	uint64_t done = 0;

	*error = 0;
	while (done < bytes) {
		struct uffdio_copy request = {
			.dst = target + done, .src = source + done, .len = bytes - done,
		};

		if (!ioctl(fd, UFFDIO_COPY, &request))
			return bytes;
		*error = errno;
		if (request.copy > 0)
			done += (uint64_t)request.copy;
		else if (*error != EINTR)
			return done;
	}
	*error = 0;
	return done;
}

/* The kernel looks for that before it looks at the request, which is senseless. */
bool userfault_changing(int fd)
{
	struct uffdio_copy request = { 0 };

	return ioctl(fd, UFFDIO_COPY, &request) && errno == EAGAIN;
}

bool userfault_next(int fd, struct uffd_msg *message)
{
	ssize_t got;

	do {
		got = read(fd, message, sizeof(*message));
	} while (got < 0 && errno == EINTR);
	return got == (ssize_t)sizeof(*message);
}
