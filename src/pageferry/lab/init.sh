#!/bin/busybox sh
# SPDX-License-Identifier: Apache-2.0
#
# First process of a lab guest. It mounts the host's root read-only under a tmpfs overlay,
# runs one job in it, and sends the job's output and exit code to the host over virtio
# ports. What it says to the host goes over the port "pageferry.control", in lines:
#
#   guest to host:  ready / started / failed MESSAGE / exit CODE
#   host to guest:  job LENGTH, then LENGTH bytes of shell to source here;
#                   size ROWS COLUMNS, whenever the terminal of a shell changes
#
# The sourced text calls share(), and sets: mode (run or shell), token (what marks the end
# of a stream), rows, columns, job (the script for the host's /bin/sh).

/bin/busybox mkdir -p /proc /sys /dev /run /host /overlay /new
/bin/busybox --install -s /bin
export PATH=/bin
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev

fail() {
    echo "pageferry: $*" >/dev/console
    [ -n "$control" ] && echo "failed $*" >&3
    sleep 5
    poweroff -f
}

port() { # NAME: wait for the virtio port of that name, print its device
    tries=0
    while [ $tries -lt 500 ]; do
        for entry in /sys/class/virtio-ports/*; do
            if [ "$(cat "$entry/name" 2>/dev/null)" = "$1" ]; then
                echo "/dev/${entry##*/}"
                return 0
            fi
        done
        usleep 10000
        tries=$((tries + 1))
    done
    return 1
}

share() { # TAG DIRECTORY: mount a writable host directory at the same path
    mkdir -p "/new$2" || fail "cannot make $2"
    # mmap: written pages reach the host at the latest when unmounted, and what the host
    # changes is seen, which the faster "loose" does not promise.
    mount -t 9p -o "trans=virtio,version=9p2000.L,msize=1048576,cache=mmap" "$1" "/new$2" ||
        fail "cannot mount the writable directory $2"
    shared=$((${shared:-0} + 1))
}

if grep -q pageferry.probe /proc/cmdline; then
    echo "pageferry: the guest is up" >/dev/console
    poweroff -f
fi

while read -r module; do
    insmod "/modules/$module" || echo "pageferry: cannot load $module" >/dev/console
done </modules/order
# A livepatch is in force once every task has left what it replaces: a second or two.
for file in /sys/kernel/livepatch/*/transition; do
    tries=0
    while [ "$(cat "$file" 2>/dev/null)" = 1 ] && [ $tries -lt 600 ]; do
        usleep 100000
        tries=$((tries + 1))
    done
done

device=$(port pageferry.control) || fail "no virtio port named pageferry.control"
exec 3<>"$device"
control=yes
echo ready >&3

mount -t 9p -o trans=virtio,version=9p2000.L,msize=1048576,cache=loose,ro host /host ||
    fail "cannot mount the host's root over 9p (does this kernel have 9p and virtio?)"
mount -t tmpfs tmpfs /overlay
mkdir /overlay/upper /overlay/work
mount -t overlay -o lowerdir=/host,upperdir=/overlay/upper,workdir=/overlay/work overlay /new ||
    fail "cannot mount the overlay over the host's root (does this kernel have overlayfs?)"

mkdir -p /new/proc /new/sys /new/dev /new/run /new/tmp
mount -t proc proc /new/proc
mount -t sysfs sysfs /new/sys
mount -t devtmpfs devtmpfs /new/dev
mkdir -p /new/dev/pts /new/dev/shm /new/dev/mqueue /new/dev/hugepages
mount -t devpts -o mode=620,ptmxmode=666 devpts /new/dev/pts
mount -t tmpfs -o mode=1777 tmpfs /new/dev/shm
mount -t mqueue mqueue /new/dev/mqueue 2>/dev/null
mount -t hugetlbfs hugetlbfs /new/dev/hugepages 2>/dev/null
ln -sf /proc/self/fd /new/dev/fd
ln -sf /proc/self/fd/0 /new/dev/stdin
ln -sf /proc/self/fd/1 /new/dev/stdout
ln -sf /proc/self/fd/2 /new/dev/stderr
mount -t debugfs debugfs /new/sys/kernel/debug 2>/dev/null
mount -t tracefs tracefs /new/sys/kernel/tracing 2>/dev/null
# The host's /run speaks of services that do not run here.
mount -t tmpfs -o mode=755 tmpfs /new/run
mkdir -p -m 1777 /new/run/lock
if mount -t cgroup2 cgroup2 /new/sys/fs/cgroup 2>/dev/null; then
    for controller in cpuset cpu memory pids; do
        echo "+$controller" >/new/sys/fs/cgroup/cgroup.subtree_control 2>/dev/null
    done
fi
hostname pageferry-lab
echo "127.0.0.1 pageferry-lab" >>/new/etc/hosts
ip link set lo up 2>/dev/null || ifconfig lo 127.0.0.1 up
ulimit -Hn 1048576 2>/dev/null

read -r word length <&3
[ "$word" = job ] || fail "the host sent no job"
head -c "$length" <&3 >/run/settings
. /run/settings
printf '%s' "$job" >/new/run/pageferry-job

# A mount namespace of its own makes the overlay the job's real root, so that the job is
# not "in a chroot", where the kernel refuses user namespaces.
start='cd /new && mount --move . / && exec chroot . /bin/sh /run/pageferry-job'

if [ "$mode" = shell ]; then
    tries=0
    while [ ! -c /dev/hvc0 ] && [ $tries -lt 500 ]; do usleep 10000; tries=$((tries + 1)); done
    exec 5<>/dev/hvc0
    stty -F /dev/hvc0 sane rows "$rows" cols "$columns"
    while read -r word rows columns; do
        [ "$word" = size ] && stty -F /dev/hvc0 rows "$rows" cols "$columns"
    done <&3 &
    before=" $(cd /proc && echo [0-9]*) $! "
    echo started >&3
    (exec setsid -c unshare -m sh -c "$start") <&5 >&5 2>&5 3>&- 5>&-
    code=$?
    # The end of the session hung up this shell's terminal as well.
    exec 5>/dev/hvc0
else
    device=$(port pageferry.stdout) && exec 5>"$device" || fail "no port for stdout"
    device=$(port pageferry.stderr) && exec 6>"$device" || fail "no port for stderr"
    # Pipes, not the ports themselves: a port can be opened only once, so that programs
    # which open /dev/stdout again would fail on one.
    mkfifo /run/stdout /run/stderr
    cat </run/stdout >&5 3>&- 5>&- 6>&- &
    relays=$!
    cat </run/stderr >&6 3>&- 5>&- 6>&- &
    relays="$relays $!"
    before=" $(cd /proc && echo [0-9]*) $relays "
    echo started >&3
    # In a subshell, so that what this shell says of a job ended by a signal ("Terminated")
    # does not get into the job's own output.
    (exec unshare -m sh -c "$start") </dev/null >/run/stdout 2>/run/stderr 3>&- 5>&- 6>&-
    code=$?
fi

# What the job left running holds its output open and the writable directories busy.
for entry in /proc/[0-9]*; do
    case "$before" in
    *" ${entry#/proc/} "*) ;;
    *) kill -9 "${entry#/proc/}" 2>/dev/null ;;
    esac
done
[ -n "$relays" ] && wait $relays
while [ "${shared:-0}" -gt 0 ]; do
    shared=$((shared - 1))
    eval "umount \"/new\$share$shared\"" || fail "cannot unmount a writable directory"
done
sync
printf '%s' "$token" >&5
[ "$mode" = run ] && printf '%s' "$token" >&6
echo "exit $code" >&3
# The host ends the guest as soon as it has everything; this is for when it does not.
sleep 10
poweroff -f
