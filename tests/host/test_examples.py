# SPDX-License-Identifier: Apache-2.0
"""The examples: their syntax, and that they ask for what is needed and no more."""

from __future__ import annotations

import errno
import json
import os
import pwd
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from pageferry import procfs, topology
from pageferry.cli import build_parser

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"
PROFILE = EXAMPLES / "kubernetes/pageferry.json"
CAPABILITIES = {"CAP_SYS_PTRACE", "CAP_DAC_READ_SEARCH", "CAP_SYS_NICE"}
SCRIPTS = [
    path
    for path in sorted(EXAMPLES.rglob("*"))
    if path.is_file() and path.read_text().startswith("#!/bin/sh")
]


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_shell(script: Path) -> None:
    assert os.access(script, os.X_OK)
    done = subprocess.run(["sh", "-n", script], capture_output=True, text=True)
    assert done.returncode == 0 and not done.stderr, done.stderr


def test_prolog(tmp_path: Path) -> None:
    """What it asks of the command makes sense, and a move that fails does not drain a machine."""
    stand_in = tmp_path / "pageferry"
    stand_in.write_text(f'#!/bin/sh\nprintf "%s\\n" "$@" > {tmp_path}/words\nexit 1\n')
    stand_in.chmod(0o755)
    prolog = EXAMPLES / "slurm/prolog"
    variables = {"PAGEFERRY": str(stand_in), "PAGEFERRY_SERVICE_NODE": "2"}
    done = subprocess.run([prolog], env=variables, capture_output=True, text=True, timeout=300)
    assert (done.returncode, done.stdout) == (0, "")
    args = build_parser().parse_args((tmp_path / "words").read_text().splitlines())
    assert (args.command, args.to, args.source) == ("move", "2", "!2")
    nothing = {"PAGEFERRY": str(tmp_path / "missing")}
    assert subprocess.run([prolog], env=nothing, timeout=300).returncode == 0


def test_prolog_moves_a_real_process(tmp_path: Path) -> None:
    """As slurmd runs it; the services are one process, as there may be no system.slice here."""
    with subprocess.Popen(["cat"], stdin=subprocess.PIPE) as service:
        through = tmp_path / "pageferry"
        through.write_text(
            f"#!/bin/sh\nverb=$1; shift 3\n"  # --cgroup and system.slice
            f'{sys.executable} -m pageferry "$verb" {service.pid} "$@"\n'
            f"echo ended with $? >> {tmp_path}/log\n"
        )
        through.chmod(0o755)
        machine = topology()
        # Where there is one node only, there is none for services to leave.
        good = 0 if len(machine.memory_nodes) > 1 else 2
        for node, code in ((machine.target_nodes[0], good), (777, 2)):
            done = subprocess.run(
                [EXAMPLES / "slurm/prolog"],
                env={
                    "PAGEFERRY": str(through),
                    "PAGEFERRY_SERVICE_NODE": str(node),
                    "SLURM_JOB_ID": "17",
                    "SLURM_JOB_UID": "0",
                    "SLURMD_NODENAME": "here",
                },
                capture_output=True,
                text=True,
                timeout=300,
            )
            assert (done.returncode, done.stdout) == (0, "") and done.stderr
            assert (tmp_path / "log").read_text().splitlines()[-1] == f"ended with {code}"
        assert service.poll() is None


@pytest.mark.skipif(not shutil.which("shellcheck"), reason="no shellcheck here")
@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_shellcheck(script: Path) -> None:
    done = subprocess.run(["shellcheck", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_manifests_fit_the_schemas_of_kubernetes() -> None:
    yaml = pytest.importorskip("yaml", reason="PyYAML is not installed")
    schemas = pytest.importorskip("kubernetes_validate", reason="no kubernetes-validate here")
    for resource in yaml.safe_load_all((EXAMPLES / "kubernetes/daemonset.yaml").read_text()):
        schemas.validate(resource, schemas.latest_version(), strict=True)


@pytest.fixture(scope="module")
def pod() -> dict[str, Any]:
    yaml = pytest.importorskip("yaml", reason="PyYAML is not installed")
    namespace, daemon_set = yaml.safe_load_all((EXAMPLES / "kubernetes/daemonset.yaml").read_text())
    assert (namespace["kind"], daemon_set["kind"]) == ("Namespace", "DaemonSet")
    assert daemon_set["metadata"]["namespace"] == namespace["metadata"]["name"]
    spec = daemon_set["spec"]
    assert spec["selector"]["matchLabels"] == spec["template"]["metadata"]["labels"]
    pod = spec["template"]["spec"]
    assert pod["hostPID"] is True
    assert pod["securityContext"]["seccompProfile"]["localhostProfile"] == PROFILE.name
    return pod


def test_daemon_set_runs_a_command_that_is(pod: dict[str, Any]) -> None:
    (container,) = pod["containers"]
    program, *words = container["command"]
    assert program == "pageferry"
    args = build_parser().parse_args(words)
    assert args.listen[1] == container["ports"][0]["containerPort"]


@pytest.mark.skipif(
    not set(procfs.capabilities()) >= CAPABILITIES or os.geteuid() != 0,
    reason="needs root with the capabilities of which it keeps some",
)
def test_profile_and_capabilities_are_enough(pod: dict[str, Any]) -> None:
    """For a process of another user; and what the profile denies is denied."""
    (container,) = pod["containers"]
    capabilities = container["securityContext"]["capabilities"]
    assert capabilities["drop"] == ["ALL"]
    assert {f"CAP_{name}" for name in capabilities["add"]} == CAPABILITIES
    nobody = pwd.getpwnam("nobody")
    with subprocess.Popen(["sleep", "600"], user=nobody.pw_uid, group=nobody.pw_gid) as target:
        try:
            for words in (["locate", str(target.pid)], ["move", str(target.pid), "--to", "0"]):
                done = subprocess.run(
                    [sys.executable, Path(__file__).with_name("restricted.py"), PROFILE,
                     ",".join(capabilities["add"]), *words, "--json"],
                    capture_output=True, text=True, timeout=300,
                )  # fmt: skip
                assert done.returncode == 0, done.stderr
                refused, _, text = done.stdout.partition("\n")
                assert int(refused) == errno.EPERM
                value = json.loads(text)
                assert value["pid"] == target.pid
        finally:
            target.kill()
    assert value["bytes_already"] > 0 and not value["stopped"]
