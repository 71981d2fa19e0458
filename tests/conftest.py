# SPDX-License-Identifier: Apache-2.0
"""For all tests."""

from __future__ import annotations

import signal
import time

import pytest

from pageferry import pressure

# A shell starts a background job with SIGINT ignored, and so would be every process that a test
# starts and interrupts.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def _nobody_else_wants_a_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Plans take fewer threads on a busy machine, and this one may be: not what is tested."""
    calm = (time.monotonic() + 1e9, pressure.Pressure())
    monkeypatch.setattr(pressure, "_last", calm)
    monkeypatch.setattr(pressure, "others_running", lambda: 0)
