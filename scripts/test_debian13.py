#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Install the Debian package in Debian 13 as a user of that would, with apt, and try it.

The system is made by debootstrap once, from the mirror that this machine's packages are from, and
kept in the cache; each run installs into a layer of memory above it, which vanishes with the run.
Nothing of this machine is in it but the kernel. Needs root, as mount and chroot do.

Usage: test_debian13.py PACKAGE.deb
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import debian_archive

from pageferry.cache import cache_home

RELEASE = "trixie"

# In a mount namespace of its own: $1 the system, $2 apt's packages, $3 our package, $4 mount point.
ABOVE = r"""
set -eu
mount -t tmpfs -o size=1g none "$4"
mkdir "$4/upper" "$4/work" "$4/root"
mount -t overlay -o "lowerdir=$1,upperdir=$4/upper,workdir=$4/work" none "$4/root"
mount -t proc none "$4/root/proc"
mount --rbind /sys "$4/root/sys"
mount --bind "$2" "$4/root/var/cache/apt/archives"
cp "$3" "$4/root/tmp/"
cp /etc/resolv.conf "$4/root/etc/resolv.conf"
cp "$5" "$4/root/tmp/try"
exec env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LC_ALL=C.UTF-8 \
	DEBIAN_FRONTEND=noninteractive chroot "$4/root" sh /tmp/try
"""

# There: what the package promises is there, works, and is gone again when it is removed.
TRY = r"""
set -eu
cd /tmp
printf 'Debian %s, ' "$(cat /etc/debian_version)"
printf 'Binary::apt::APT::Keep-Downloaded-Packages "true";\n' >/etc/apt/apt.conf.d/99-keep
apt-get -q=2 update
apt-get -q=2 -y --no-install-recommends install man-db bash-completion >/tmp/log 2>&1 ||
	{ cat /tmp/log; exit 1; }
find /usr /etc -xdev | sort >/tmp/before
apt-get -q=2 -y --no-install-recommends install ./pageferry_*.deb >/tmp/log 2>&1 ||
	{ cat /tmp/log; exit 1; }
rm pageferry_*.deb
python3 --version
dpkg-query -W -f '${Package} ${Version}\n' pageferry python3-numpy python3-cffi-backend python3-rich
for tool in cc gcc clang; do
	! command -v $tool || { echo "there is a compiler"; exit 1; }
done

pageferry --version
pageferry locate --json $$ >located
python3 - <<'END'
import json
import numpy, pageferry
located = json.load(open("/tmp/located"))
assert located, located
node = pageferry.topology().memory_nodes[0]
for engine in ("kernel", "user"):
    array = numpy.arange(1 << 20)
    result = pageferry.move(array, node, engine=engine)
    assert result.complete, result
    assert (array == numpy.arange(1 << 20)).all()
print("move() by both engines, bytes as they were")
END
pageferry run --mt always --stats -- sh -c 'grep -q pageferry_preload /proc/self/maps'
echo "the library is preloaded"
for page in 1/pageferry 7/pageferry-preload 7/MPOL_MF_MOVE_MT; do
	man "${page%%/*}" "${page#*/}" | grep -q pageferry || { echo "no manual $page"; exit 1; }
done
echo "manual pages"
bash -c '. /usr/share/bash-completion/bash_completion; _comp_load pageferry; complete -p pageferry'
dpkg --verify pageferry
apt-get -q=2 -y purge pageferry >/tmp/log 2>&1 || { cat /tmp/log; exit 1; }
apt-get -q=2 -y --purge autoremove >/tmp/log 2>&1 || { cat /tmp/log; exit 1; }
find /usr /etc -xdev | sort >/tmp/after
comm -13 /tmp/before /tmp/after | grep pageferry && { echo "left behind"; exit 1; }
echo "removed, and nothing of it is left"
"""


def system() -> Path:
    """Return the folder with a small Debian 13, made the first time."""
    home = cache_home() / "debian-13"
    place = home / RELEASE
    home.mkdir(parents=True, exist_ok=True)
    if not place.is_dir():
        with tempfile.TemporaryDirectory(dir=home) as temporary:
            root = Path(temporary) / "root"
            debian_archive.run(
                *("debootstrap", "--variant=minbase", f"--keyring={debian_archive.KEYS}"),
                *(RELEASE, root, debian_archive.mirror()),
            )
            root.rename(place)
    return place


def main() -> int:
    """Make the system, install, try."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("package", type=Path)
    package = parser.parse_args().package.resolve()
    if os.geteuid():
        sys.exit("test_debian13: needs root, to mount and to change the root")
    if not shutil.which("debootstrap"):
        sys.exit("test_debian13: needs debootstrap: scripts/install debootstrap")
    below = system()
    archives = below.parent / "packages"
    (archives / "partial").mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as temporary:
        place = Path(temporary) / "above"
        place.mkdir()
        script = Path(temporary) / "try"
        script.write_text(TRY)
        words = (below, archives, package, place, script)
        command = ["unshare", "--mount", "--pid", "--fork", "sh", "-c", ABOVE, "sh"]
        return subprocess.run([*command, *map(str, words)], stdin=subprocess.DEVNULL).returncode


if __name__ == "__main__":
    sys.exit(main())
