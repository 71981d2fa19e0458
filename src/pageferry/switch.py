# SPDX-License-Identifier: Apache-2.0
"""The administrator's switch, ``/etc/pageferry.toml``: what vm.mt_page_copy is for a kernel.

::

    mt = 1          # 0 off, 1 for every call, "flag" for calls with MPOL_MF_MOVE_MT
    threads = 4     # optional
"""

from __future__ import annotations

import errno
import os
import tomllib
from dataclasses import dataclass
from pathlib import Path

from .errors import PageferryError
from .trusted import read_trusted

FILE = "etc/pageferry.toml"
MODES = ("flag", "always", "never")
_VALUES: dict[object, str] = {0: "never", 1: "always", "flag": "flag"}


@dataclass(frozen=True)
class Switch:
    """What the file says. ``mode`` is one of ``MODES``; without a file it is ``flag``."""

    mode: str = "flag"
    threads: int | None = None
    path: Path | None = None
    """The file, None if there is none."""


def read_switch(root: str | os.PathLike[str] = "/") -> Switch:
    """Read ``/etc/pageferry.toml`` below ``root``.

    Raises ``PageferryError`` when it is wrong, or when anybody but root (or, elsewhere than
    below ``/``, this user) can have written it.
    """
    path = Path(root) / FILE
    owners = {0} if os.fspath(root) == "/" else {0, os.geteuid()}
    try:
        # A link is the administrator's, as the directory is.
        values = tomllib.loads(read_trusted(path, owners=owners, links=True).decode())
    except (FileNotFoundError, NotADirectoryError):
        return Switch()
    except OSError as error:
        raise PageferryError(error.errno or errno.EIO, f"cannot read {path}") from None
    except RecursionError:
        raise _wrong(path, "it is nested too deeply") from None
    except ValueError as error:  # of reading, of UTF-8, of TOML
        raise _wrong(path, str(error)) from None
    unknown = sorted(set(values) - {"mt", "threads"})
    if unknown:
        raise _wrong(path, f"there is no setting named {_shown(unknown[0])}")
    value = values.get("mt", "flag")
    if isinstance(value, bool) or not isinstance(value, (int, str)) or value not in _VALUES:
        raise _wrong(path, f'mt is 0, 1 or "flag", not {_shown(value)}')
    threads = values.get("threads")
    if threads is not None and (type(threads) is not int or threads < 1):
        raise _wrong(path, f"threads is a number from 1 up, not {_shown(threads)}")
    return Switch(_VALUES[value], threads, path)


def _shown(value: object) -> str:
    return repr(value)[:60]


def _wrong(path: Path, what: str) -> PageferryError:
    return PageferryError(errno.EINVAL, f"{path}: {what}", "see pageferry-preload(7)")
