# SPDX-License-Identifier: Apache-2.0
"""The package's version, from its metadata."""

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("pageferry")
except PackageNotFoundError:  # run from a source tree that was never installed
    __version__ = "0+unknown"
