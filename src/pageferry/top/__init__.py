# SPDX-License-Identifier: Apache-2.0
"""The live view of ``pageferry top``: what is watched, how it looks, keys, and the loop."""
