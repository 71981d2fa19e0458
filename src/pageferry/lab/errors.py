# SPDX-License-Identifier: Apache-2.0
"""Failures of the lab itself, as opposed to failures of a command that ran in it."""

from __future__ import annotations

from ..errors import PageferryError


class LabError(PageferryError):
    """The lab could not be set up: a program, package, kernel or directory is missing."""
