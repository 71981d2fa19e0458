# SPDX-License-Identifier: Apache-2.0
"""Dask's workers keep their arrays on their nodes: a local cluster with processes of its own."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

import documents
import pageferry
from pageferry import PageferryError

distributed = pytest.importorskip(
    "distributed", reason="distributed is not installed: pip install 'pageferry[dask]'"
)
import dask  # noqa: E402

import pageferry.dask  # noqa: E402

SIZE = 4 << 20
# A slow machine has time; every two seconds Dask would drop one of two copies, whichever it likes.
SETTINGS = {
    "distributed.comm.timeouts.connect": "300s",
    "distributed.comm.timeouts.tcp": "300s",
    "distributed.scheduler.active-memory-manager.start": False,
}


@pytest.fixture(scope="module")
def client() -> Iterator[Any]:
    with (
        dask.config.set(SETTINGS),
        distributed.LocalCluster(
            n_workers=2,
            threads_per_worker=1,
            processes=True,
            dashboard_address=None,
            memory_limit="512MiB",
        ) as cluster,
        distributed.Client(cluster) as client,
    ):
        yield client


def make(seed: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
    return np.random.default_rng(seed).integers(0, 255, SIZE, np.uint8)


def total(array: np.ndarray[Any, Any]) -> int:
    return int(array.sum())


def pair(array: np.ndarray[Any, Any]) -> dict[str, Any]:
    return {"half": array[::2].copy(), "small": array[:100].copy(), "name": "pair"}


def test_without_the_plugin_it_says_so(client: Any) -> None:
    with pytest.raises(PageferryError, match="register_plugin"):
        pageferry.dask.placement(client)


def test_each_worker_keeps_its_arrays(client: Any) -> None:
    first, second = client.scheduler_info(n_workers=-1)["workers"]
    before = client.submit(make, 0, workers=[first])
    distributed.wait(before)
    client.register_plugin(pageferry.dask.KeepOnNode())
    made = [client.submit(make, seed, workers=[first]) for seed in (1, 2)]
    theirs = client.submit(make, 3, workers=[second])
    pairs = client.submit(pair, theirs, workers=[second])
    assert client.submit(total, made[0], workers=[second]).result() == total(make(1))
    distributed.wait([*made, theirs, pairs])
    found = pageferry.dask.placement(client)
    assert set(found) == {first, second}
    machine = pageferry.topology()
    for worker, arrays, size in ((first, 3, 3 * SIZE), (second, 3, 2 * SIZE + SIZE // 2)):
        place = found[worker]
        assert place.settled and place.node in machine.target_nodes
        assert set(place.cpus) <= machine.node(place.node).cpus
        assert place.kept.node == place.node and place.kept.arrays >= arrays
        assert not place.kept.errors and not place.kept.bytes_failed
        assert place.bytes_elsewhere == 0
        assert size <= place.nodes[place.node] <= size + arrays * (4 << 20)  # whole huge pages
    assert [total(array) for array in client.gather(made)] == [total(make(1)), total(make(2))]
    only = pageferry.dask.placement(client, [second])
    assert set(only) == {second}


def test_the_blocks_of_the_documentation(client: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert documents.run_python(documents.DOCS / "cluster.md", documents.DASK, client=client) == 2
    assert capsys.readouterr().out.count("elsewhere 0") == 2


def test_a_node_that_is_not_there(client: Any) -> None:
    with pytest.raises(pageferry.NodeError, match="999"):
        client.register_plugin(pageferry.dask.KeepOnNode(999))
    with pytest.raises(TypeError, match="a node is a number"):
        pageferry.dask.KeepOnNode("0")  # type: ignore[arg-type]
