"""``mergekit-3h merge`` writes the files of ``mergekit-yaml``, to the last byte."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from pathlib import Path

import click
import pytest
import torch
import yaml
from mergekit.options import MergeOptions
from tiny_models import Family

from mergekit_3h.cli.merge import command
from mergekit_3h.methods.merging.progress import ExpectedTensor, MergeProgress, Pace

from .conftest import SHARDS, SMALL, files, merge


@pytest.mark.parametrize(
    ("method", "parameters", "flags"),
    [
        ("tsvm", {}, SMALL),
        ("tsvm", {}, ("--async-write", "--write-threads", "2", *SMALL)),
        ("tsvm", {}, ("--num-threads", "2", *SMALL)),
        ("dare_ties", {"density": 0.5, "weight": 0.4}, ("--random-seed", "3", *SMALL)),
        ("ties", {"density": 0.5, "weight": 0.4}, ("--no-safe-serialization", *SMALL)),
        ("linear", {"weight": 0.5}, ("--no-copy-tokenizer", "--no-write-model-card", "--clone-tensors")),
    ],
    ids=["tsvm", "written-in-threads", "in-groups", "dare", "bin", "one-file"],
)
def test_the_files_are_those_of_mergekit_yaml(write_config, reference, out, method, parameters, flags) -> None:
    config = write_config(method, **parameters)
    expected = reference(config, *flags)
    assert "the merged llama" in merge(config, out, *flags).output
    assert files(out) == expected
    shards = [name for name in expected if name.endswith((".safetensors", ".bin"))]
    assert len(shards) == (SHARDS if flags[-2:] == SMALL else 1)


def test_layers_that_are_taken_twice(llama: Family, absolute: Path, reference, out: Path) -> None:
    """Two tensors of the result are made of one of the inputs."""
    slices = [{"sources": [{"model": str(llama.experts[i]), "layer_range": [0, 2]}]} for i in (0, 0, 1)]
    config = absolute / "twice.yml"
    config.write_text(yaml.safe_dump({"merge_method": "passthrough", "slices": slices, "dtype": "bfloat16"}))
    expected = reference(config, *SMALL)
    merge(config, out, *SMALL)
    found = files(out)
    # Without a base, mergekit takes config and tokenizer of any of the models.
    weights = [name for name in expected if name.startswith("model")]
    assert len(weights) > 2 and {name: found[name] for name in weights} == {name: expected[name] for name in weights}
    assert set(found) == set(expected)


def test_every_option_of_mergekit_is_there_or_has_a_reason_not_to() -> None:
    renamed = {
        "device": "--merge-device",  # --device is where the evaluation runs
        "verbosity": "--verbose",
        "multi_gpu": "--multi-gpu",  # refused with advice
        "gpu_rich": "--multi-gpu",  # an alias of four others, of which one is refused
    }
    known = {flag for option in command.params if isinstance(option, click.Option) for flag in option.opts}
    for name in MergeOptions.model_fields:
        assert renamed.get(name, f"--{name.replace('_', '-')}") in known, name


def test_several_gpus_are_a_matter_of_ray(write_config, out: Path) -> None:
    said = merge(write_config("linear", weight=0.5), out, "--multi-gpu", status=1).output
    assert "cannot be continued; use --ray --ray-gpus-per-worker 1" in said and not out.exists()


class TestTimeLeft:
    def test_layers_are_known_after_the_first(self) -> None:
        pace = Pace()
        assert pace.left({(4, 4): 2}) is None
        pace.hear((8, 8), 1.0)  # the embeddings
        assert pace.left({(4, 4): 2}) == pytest.approx(0.5), "by the numbers in them, as long as nothing else is known"
        pace.hear((4, 4), 3.0)
        pace.hear((4, 4), 5.0)
        assert pace.left({(4, 4): 10, (8, 8): 1}) == pytest.approx(41.0)

    def test_without_a_terminal_there_is_a_line_now_and_then(
        self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        monkeypatch.setattr("mergekit_3h.methods.merging.progress._LINE_SECONDS", 0.0)
        tensors = {f"layer{i}": ExpectedTensor((4, 4), 32) for i in range(6)}
        progress = MergeProgress(tensors, disable=False)
        progress.known(["layer0", "layer1"])
        progress.shared_by(2)
        progress.merged("layer2", (4, 4), seconds=300.0)
        progress.close()
        assert "merge: 3 of 6 tensors, about 8 min left" in capsys.readouterr().err

    def test_a_terminal_has_one_line(self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
        progress = MergeProgress({f"layer{i}": ExpectedTensor((4, 4), 32) for i in range(3)}, disable=False)
        for i in range(3):
            progress.merged(f"layer{i}", (4, 4), seconds=30.0)
        progress.close()
        assert re.search(r"merge: 100%\|.*\| 3/3 tensors \[.*left\]", capsys.readouterr().err)


WRONG: list[tuple[list[str], str]] = [
    (["--out-shard-size", "5G"], "--out-shard-size: got '5G'; expected bytes"),
    (["--merge-device", "gpu"], "--merge-device: got 'gpu'; expected cpu, cuda"),
    (["--cuda"], "there is no CUDA device on this machine"),
    (["--lora-merge-dtype", "half"], "--lora-merge-dtype: got 'half'"),
    (["--ray-workers", "2"], "--ray-workers is of a merge on a cluster: add --ray"),
    (["--ray", "127.0.0.1:1"], "no connection to a Ray cluster at '127.0.0.1:1'"),
]


@pytest.mark.parametrize(("flags", "message"), WRONG, ids=lambda value: str(value)[:24])
def test_wrong_options_are_said_in_words(
    write_config: Callable[..., Path], out: Path, flags: list[str], message: str
) -> None:
    if "--cuda" in flags and torch.cuda.is_available():
        pytest.skip("there is a CUDA device")
    if "--ray" in flags:
        pytest.importorskip("ray")
    said = merge(write_config("linear", weight=0.5), out, *flags, status=1).output
    assert message in said and "Traceback" not in said and not out.exists()


def test_the_config_is_not_taken_for_an_address(write_config, out: Path) -> None:
    config = write_config("linear", weight=0.5)
    said = merge("--ray", config, out, status=2).output
    assert "write --ray behind CONFIG and OUT" in said


def test_two_merges_in_one_file(write_config, out: Path) -> None:
    config = write_config("linear", weight=0.5)
    config.write_text("\n---\n".join([f"name: first\n{config.read_text()}", f"name: second\n{config.read_text()}"]))
    assert "holds 2 merges; expected one" in merge(config, out, status=1).output
