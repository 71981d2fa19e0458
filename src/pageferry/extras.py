# SPDX-License-Identifier: Apache-2.0
"""Packages that only some commands need: asked for when they are used, named when missing."""

from __future__ import annotations

import errno
import importlib
from typing import Any

from .errors import PageferryError


def require(module: str, extra: str, purpose: str) -> Any:
    """Import and return ``module``, which is installed by ``pip install 'pageferry[extra]'``.

    Raises ``PageferryError`` (ENOPKG) that says what ``purpose`` needs, and how to get it.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        package = module.partition(".")[0]
        if (error.name or "").partition(".")[0] != package:
            raise  # it is there, and something that it needs is not
        raise PageferryError(
            errno.ENOPKG,
            f"{purpose} needs the Python package {package.replace('_', '-')}",
            f"pip install 'pageferry[{extra}]'",
        ) from None
