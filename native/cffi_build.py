# SPDX-License-Identifier: Apache-2.0
"""Write the C source of the Python binding from pageferry.h (cffi, API mode).

Usage: cffi_build.py HEADER OUTPUT. Only what stands between the two "cffi:" marks of the header
is bound, so that the header stays the one contract.
"""

import re
import sys
from pathlib import Path

import cffi


def declarations(header: str) -> str:
    """Return the marked part of the header in the C that cffi reads."""
    begin = header.index("/* cffi: begin")
    text = header[header.index("*/", begin) + 2 : header.index("/* cffi: end")]
    return re.sub(r"\bPF_API\b", "", text)


def main() -> None:
    """Generate the source file."""
    header, output = sys.argv[1:]
    builder = cffi.FFI()
    builder.cdef(declarations(Path(header).read_text()))
    builder.cdef('extern "Python" int pf_python_poll(void *arg);')
    builder.set_source("pageferry._native", '#include "pageferry.h"\n')
    builder.emit_c_code(output)


main()
