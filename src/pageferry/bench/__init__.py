# SPDX-License-Identifier: Apache-2.0
"""Experiments, one module each, and their tables and plots. Times are compared inside one run."""
