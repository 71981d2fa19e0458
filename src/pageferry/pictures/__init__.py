# SPDX-License-Identifier: Apache-2.0
"""Pictures: of the machine, of a process's memory, of figures; as files, and as text."""
