# SPDX-License-Identifier: Apache-2.0
"""A real database server, Redis, moved while its clients work.

Run by: pageferry lab run --topology two-node --memory 896M --cpus 2
"""

from __future__ import annotations

import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

import pageferry

# The server of Debian's redis-tools: redis-server by another name, and without a service that
# starts by itself.
SERVER = shutil.which("redis-check-rdb")
KEYS, VALUE = 20000, 400


@dataclass
class Redis:
    """A server of this test's own, on a socket of its own."""

    socket: Path
    pid: int

    def ask(self, *words: str) -> str:
        command = ["redis-cli", "-s", self.socket, *words]
        done = subprocess.run(command, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    def clients(self, *words: str) -> subprocess.Popen[str]:
        """Four connections that send requests as fast as they are answered."""
        command = ["redis-benchmark", "-s", self.socket, "-c", "4", "--csv", *words]
        return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


@pytest.fixture(scope="module")
def redis() -> Iterator[Redis]:
    if SERVER is None:
        pytest.skip("no redis-tools here")
    with tempfile.TemporaryDirectory() as folder:
        socket = Path(folder) / "redis.sock"
        options = f"--port 0 --unixsocket {socket} --enable-debug-command yes --appendonly no"
        process = subprocess.Popen(
            ["redis-server", *options.split(), "--save", "", "--dir", folder],
            executable=SERVER,
            stdout=subprocess.DEVNULL,
        )
        try:
            end = time.monotonic() + 300
            ping = ["redis-cli", "-s", socket, "ping"]
            while subprocess.run(ping, capture_output=True).stdout != b"PONG\n":
                assert process.poll() is None and time.monotonic() < end
                time.sleep(0.05)
            yield Redis(socket, process.pid)
        finally:
            process.kill()
            process.wait()


def move(redis: Redis, node: int) -> None:
    """Move all of the server's own memory, as one does to a running database."""
    result = pageferry.move(pid=redis.pid, node=node)
    assert result.complete, result.failed
    where = pageferry.locate(pid=redis.pid, kind="anon")
    # What the server has touched since then is where its CPU is.
    assert where.on(node) > 0.8 * where.bytes_present


def test_a_database_that_answers_meanwhile(redis: Redis) -> None:
    assert redis.ask("debug", "populate", str(KEYS), "key", str(VALUE)) == "OK"
    before = redis.ask("debug", "digest")  # of all keys and values
    clients = redis.clients("-n", "5000", "-r", str(KEYS), "GET", "key:__rand_int__")
    moves = 0
    while moves < 4 or clients.poll() is None:
        move(redis, 1 - moves % 2)
        moves += 1
    rows, _ = clients.communicate(timeout=300)
    assert clients.returncode == 0 and "GET" in rows, rows
    assert redis.ask("debug", "digest") == before


def test_no_write_is_lost(redis: Redis) -> None:
    count = 5000
    clients = redis.clients("-n", str(count), "INCR", "count")
    moves = 0
    while moves < 4 or clients.poll() is None:
        move(redis, 1 - moves % 2)
        moves += 1
    clients.communicate(timeout=300)
    assert clients.returncode == 0
    assert redis.ask("get", "count") == str(count)
