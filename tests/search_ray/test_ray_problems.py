"""What can be wrong with a cluster or its workers is said in a sentence."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from collections.abc import Callable
from functools import partial
from pathlib import Path
from shutil import copytree

import pytest

from mergekit_3h.cluster.options import ClusterOptions, parse_cluster_options
from mergekit_3h.cluster.pool import ClusterError
from mergekit_3h.errors import ModelError, OptionError
from mergekit_3h.search import Problem
from mergekit_3h.search.ray_runner import RayRunner

Opening = Callable[..., "partial[Problem]"]


def fresh(code: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    """Run code in a process of its own, which is connected to no cluster."""
    command = [sys.executable, "-c", textwrap.dedent(code), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"worker": 2}, "no option 'worker'; did you mean 'workers'"),
        ({"workers": 0}, "'workers': got 0"),
        ({"share": "layers"}, "'share': got 'layers'"),
        ({"gpus_per_worker": 1.5}, "'gpus_per_worker': got 1.5; expected at most 1, or a whole number"),
    ],
)
def test_options(given: dict, message: str) -> None:
    with pytest.raises(OptionError, match=message):
        parse_cluster_options(given)


def test_a_gpu_can_be_shared() -> None:
    assert parse_cluster_options({"gpus_per_worker": 0.25}).gpus_per_worker == 0.25
    assert parse_cluster_options({"gpus_per_worker": 2}).gpus_per_worker == 2


def test_an_error_in_a_worker_is_the_error_here(cluster: str, opening: Opening, tmp_path: Path) -> None:
    opened = opening()
    gone = partial(opened.func, tmp_path / "gone", *opened.args[1:])
    with (
        RayRunner(opened(), gone, ClusterOptions(address=cluster, workers=1, cpus_per_worker=0.5)) as runner,
        pytest.raises(ModelError, match="gone: no such folder"),
    ):
        list(runner.evaluate_models(["base"]))


def test_a_worker_with_other_models_is_refused(cluster: str, opening: Opening, tmp_path: Path) -> None:
    opened = opening()
    base, experts, *others = opened.args
    copy = copytree(experts["expert1"], tmp_path / "copy")
    swapped = partial(opened.func, base, {**experts, "expert0": copy}, *others)
    with (
        RayRunner(opened(), swapped, ClusterOptions(address=cluster, workers=1, cpus_per_worker=0.5)) as runner,
        pytest.raises(ModelError, match="has other models than this process"),
    ):
        list(runner.evaluate_models(["base"]))


def test_a_cluster_without_the_gpus(cluster: str, opening: Opening) -> None:
    opened = opening()
    scale = ClusterOptions(address=cluster, workers=1, gpus_per_worker=1.0, start_timeout=0.5)
    with (
        RayRunner(opened(), opened, scale) as runner,
        pytest.raises(ClusterError, match=r"no worker was ready within 0.5 s.*needs 1 CPU and 1 GPU"),
    ):
        list(runner.evaluate_models(["base"]))


def test_nothing_starts_without_work(opening: Opening) -> None:
    opened = opening()
    with RayRunner(opened(), opened, ClusterOptions(address="nowhere:1")) as runner:
        assert list(runner.evaluate([], gradient=False)) == []
        assert list(runner.evaluate_models([])) == []
        assert runner.workers == []


def test_without_ray_the_error_names_the_extra() -> None:
    done = fresh("""
        import sys
        sys.modules["ray"] = None
        from mergekit_3h.optional import MissingExtraError
        from mergekit_3h.search.ray_runner import RayRunner
        try:
            RayRunner(None, None)
        except MissingExtraError as error:
            print(error)
    """)
    assert "pip install 'mergekit-3h[ray]'" in done.stdout, done.stderr


OWN_CLUSTER = """
    import logging, pickle, sys, torch
    torch.set_num_threads(1)
    from mergekit_3h.errors import OptionError
    from mergekit_3h.search.ray_runner import RayRunner
    from mergekit_3h.cluster.options import ClusterOptions
    opened = pickle.loads(bytes.fromhex(sys.argv[1]))
    problem = opened()
    try:
        with RayRunner(problem, opened, ClusterOptions(**eval(sys.argv[2]))) as runner:
            ours = [each.losses for each in runner.evaluate([(0.1, 0.2, 0.3)], gradient=False)]
            workers = {report.pid for report in runner.workers}
    except OptionError as error:
        print(error)
    else:
        local = [each.losses for each in problem.local_runner().evaluate([(0.1, 0.2, 0.3)], gradient=False)]
        print("the same" if ours == local else (ours, local), len(workers))
    import ray
    print("connected" if ray.is_initialized() else "shut down")
"""


def test_a_cluster_of_our_own_is_started_and_shut_down(opening: Opening) -> None:
    import pickle

    done = fresh(OWN_CLUSTER, pickle.dumps(opening()).hex(), {"workers": 1, "cpus_per_worker": 0.5})
    assert done.stdout.split("\n")[:2] == ["the same 1", "shut down"], done.stderr


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"cpus_per_worker": 1e6}, "a worker needs 1e+06 CPU and 0 GPU"),
        ({"address": "127.0.0.1:1"}, "option 'address': no connection to a Ray cluster at '127.0.0.1:1'"),
    ],
)
def test_a_cluster_that_cannot_be_used(opening: Opening, options: dict, message: str) -> None:
    import pickle

    done = fresh(OWN_CLUSTER, pickle.dumps(opening()).hex(), options)
    assert message in done.stdout, done.stderr
    assert "shut down" in done.stdout
