# SPDX-License-Identifier: Apache-2.0
"""For all tests."""

from __future__ import annotations

import signal
import time

import pytest
from hypothesis import HealthCheck, settings

from pageferry import pressure

# A shell starts a background job with SIGINT ignored, and so would be every process that a test
# starts and interrupts.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


# The same examples each time, so that what fails is due to a change, and no limits of time. For
# make fuzz there are others: pytest --hypothesis-profile=random.
for name, same, examples in (("same", True, 100), ("random", False, 1000)):
    settings.register_profile(
        name,
        derandomize=same,
        max_examples=examples,
        deadline=None,
        print_blob=True,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.differing_executors],
    )
settings.load_profile("same")


@pytest.fixture(autouse=True)
def _nobody_else_wants_a_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Plans take fewer threads on a busy machine, and this one may be: not what is tested."""
    calm = (time.monotonic() + 1e9, pressure.Pressure())
    monkeypatch.setattr(pressure, "_last", calm)
    monkeypatch.setattr(pressure, "others_running", lambda _=0: 0)
