# SPDX-License-Identifier: Apache-2.0
"""For all tests."""

from __future__ import annotations

import signal

# A shell starts a background job with SIGINT ignored, and so would be every process that a test
# starts and interrupts.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
