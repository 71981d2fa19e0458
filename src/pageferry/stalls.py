# SPDX-License-Identifier: Apache-2.0
"""What the core counts of stalls, by the user engine and by an exchange, in milliseconds."""

from __future__ import annotations

from collections.abc import Sequence

from .report import Stalls


def stalls_of(buckets: Sequence[int], longest_us: int) -> Stalls:
    """Return what a histogram of the core (``pf_user_progress.stalls``) says."""
    pieces = sum(buckets)

    def quantile(share: float) -> float:
        seen = 0
        for bucket, count in enumerate(buckets):
            seen += count
            if count and seen >= share * pieces:
                return min(_end_us(bucket), longest_us) / 1000
        return 0.0

    return Stalls(pieces, quantile(0.5), quantile(0.99), longest_us / 1000)


def _end_us(bucket: int) -> int:
    """Return where a bucket ends: below 4 us each has one, then there are four in an octave."""
    if bucket < 4:
        return bucket + 1
    octave, quarter = divmod(bucket, 4)
    return (5 + quarter) << (octave - 1)
