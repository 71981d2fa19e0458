# SPDX-License-Identifier: Apache-2.0
"""One module per verb of the command line.

Each has ``add_parser(subparsers)``, which sets ``run`` as the default of its parser, and
``run(args) -> int``, which returns the exit code.
"""
