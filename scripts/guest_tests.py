# SPDX-License-Identifier: Apache-2.0
"""Run tests/guest in lab guests, one for each machine of tests/guest/machines.toml.

Usage: guest_tests.py [NAME ...]. Exits with 1 if any guest's tests failed.
"""

import os
import sys
import tomllib

import guest

TIMEOUT = str(1800 + float(os.environ.get("PAGEFERRY_STRESS_SECONDS", "0")))  # seconds


def main() -> int:
    """Run the guests one after the other; they would only slow each other down."""
    with open(guest.ROOT / "tests/guest/machines.toml", "rb") as file:
        machines = tomllib.load(file)["machine"]
    wanted = sys.argv[1:] or [machine["name"] for machine in machines if not machine.get("asked")]
    unknown = set(wanted) - {machine["name"] for machine in machines}
    if unknown:
        print(f"guest_tests: no machine named {', '.join(sorted(unknown))}", file=sys.stderr)
        return 2
    failed = []
    for machine in machines:
        if machine["name"] not in wanted:
            continue
        print(f"\n=== guest: {machine['name']} ({' '.join(machine['args'])}) ===", flush=True)
        pytest = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *machine["tests"]]
        if guest.run(["--timeout", TIMEOUT, *machine["args"]], pytest):
            failed.append(machine["name"])
    print(f"\nguest tests: {len(wanted)} machines, failed: {', '.join(failed) or 'none'}")
    return bool(failed)


if __name__ == "__main__":
    sys.exit(main())
