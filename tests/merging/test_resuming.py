"""A merge that was ended goes on where it was: the same bits, nothing merged twice, nothing mixed."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from click.testing import CliRunner
from hosts import merge_config
from mergekit.graph import Executor
from safetensors.torch import load_file, save_file
from tiny_adapters import change_tensors, write_adapters
from tiny_models import Family, tiny_model, tiny_tokenizer, write_family

from mergekit_3h.cli import main
from mergekit_3h.diagnostics.record import read_record
from mergekit_3h.methods.merging.folder import UNFINISHED
from mergekit_3h.writing import keep_others_out

from .conftest import SHARDS, SMALL, files, merge

RANDOM = ("--random-seed", "3", *SMALL)


def pieces(out: Path) -> list[Path]:
    return sorted((out / UNFINISHED / "pieces").rglob("model-*.safetensors"))


@pytest.mark.parametrize("count", [1, 5, SHARDS])
@pytest.mark.parametrize(
    ("method", "parameters", "flags"),
    [
        ("tsvm", {}, ("--num-threads", "2", *SMALL)),
        ("dare_ties", {"density": 0.5, "weight": 0.4}, RANDOM),
        ("della", {"density": 0.5, "weight": 0.4, "epsilon": 0.1}, (*RANDOM, "--async-write")),
    ],
    ids=["tsvm-in-groups", "dare", "della-written-in-threads"],
)
def test_it_ends_with_the_bits_of_an_undisturbed_one(
    write_config, reference, out: Path, ended_after, method: str, parameters: dict, flags: tuple[str, ...], count: int
) -> None:
    config = write_config(method, **parameters)
    expected = reference(config, *flags)
    ended_after(count)
    said = merge(config, out, *flags, status=130).output
    assert "finished files are kept, and the same command goes on from there" in said
    assert [path.name for path in out.iterdir()] == [UNFINISHED], "nothing takes it for a model"
    kept = {path: path.stat().st_mtime_ns for path in pieces(out)}
    assert len(kept) >= count
    ended_after(None)
    torch.manual_seed(12345)  # whatever else the process has drawn
    merge(config, out, *flags)
    assert files(out) == expected


def test_what_is_finished_is_not_merged_again(
    write_config, out: Path, ended_after, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = write_config("linear", weight=0.5)
    ran: list[str] = []
    run = Executor.run

    def watched(self: Executor, *given: Any, **more: Any) -> Any:
        for task, value in run(self, *given, **more):
            ran.append(type(task).__name__)
            yield task, value

    monkeypatch.setattr(Executor, "run", watched)
    ended_after(5)
    merge(config, out, *SMALL, status=130)
    first = ran.count("SaveTensor")
    ended_after(None)
    merge(config, out, *SMALL)
    tensors = len(json.loads((out / "model.safetensors.index.json").read_text())["weight_map"])
    # The tensor that was too many for the fifth shard was merged already.
    assert ran.count("SaveTensor") == tensors and 0 < first < tensors
    assert ran.count("ExecuteMergeMethodTask") == tensors + 1


@pytest.fixture
def _ctrl_c_as_in_a_shell() -> Iterator[None]:
    """A process in the background is begun with Ctrl-C ignored, and so are the tests in it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("_ctrl_c_as_in_a_shell")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_that_comes_out_of_a_library_as_an_error(
    write_config, reference, out: Path, ended_after, number: signal.Signals
) -> None:
    config = write_config("linear", weight=0.5)
    expected = reference(config, *SMALL)

    def hidden(_: Any) -> None:
        """As torch does where a handler raises while it asks an object for its length."""
        try:
            signal.raise_signal(number)
        except BaseException:
            raise ValueError("could not determine the shape of object") from None

    ended_after(3, hidden)
    assert "stopped: 3 finished files are kept" in merge(config, out, *SMALL, status=128 + number).output
    ended_after(None)
    merge(config, out, *SMALL)
    assert files(out) == expected


def test_a_kill_while_the_files_get_their_places(
    write_config, reference, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = write_config("dare_ties", density=0.5, weight=0.4)
    expected = reference(config, *RANDOM)
    replace, moved = Path.replace, 0

    def dying(self: Path, target: Path) -> Path:
        nonlocal moved
        if out in target.parents and target.parent == out:
            moved += 1
            if moved == 9:  # config, card, tokenizer and some of the shards
                raise KeyboardInterrupt
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", dying)
    assert CliRunner().invoke(main, ["merge", str(config), str(out), *RANDOM]).exit_code == 130
    assert list(out.glob("model-*.safetensors")) and not (out / "model.safetensors.index.json").exists()
    monkeypatch.setattr(Path, "replace", replace)
    merge(config, out, *RANDOM)
    assert files(out) == expected


def test_a_damaged_file_is_told_and_made_again(
    write_config, reference, out: Path, ended_after, caplog: pytest.LogCaptureFixture
) -> None:
    config = write_config("dare_ties", density=0.5, weight=0.4)
    expected = reference(config, *RANDOM)
    ended_after(6)
    merge(config, out, *RANDOM, status=130)
    first, second, third, *_ = pieces(out)
    content = bytearray(second.read_bytes())
    content[-1] ^= 1
    second.write_bytes(content)
    third.unlink()
    os.truncate(first, 100)
    (second.parent / "model-7.safetensors").write_bytes(b"half written")
    ended_after(None)
    merge(config, out, *RANDOM)
    assert "is of 100 bytes instead of" in caplog.text and "is not as it was written" in caplog.text
    assert "is gone; what is in it is merged again" in caplog.text
    assert files(out) == expected


class TestRefusals:
    """What would give a model of two merges."""

    @pytest.fixture
    def begun(self, tmp_path_factory: pytest.TempPathFactory, out: Path, ended_after) -> Callable[[], Path]:
        family = write_family(tmp_path_factory.mktemp("own").resolve(), experts=1)
        config = family.base.parent / "merge.yml"
        content = {**merge_config(family, "linear", weights=[0.5]), "parameters": {"weight": 0.5}}
        config.write_text(yaml.safe_dump(content))
        ended_after(3)
        merge(config, out, *SMALL, status=130)
        ended_after(None)
        return config

    def test_another_config(self, begun: Path, out: Path) -> None:
        begun.write_text(begun.read_text() + "dtype: bfloat16\n")
        said = merge(begun, out, *SMALL, status=1).output
        assert f'{out} holds the beginning of another merge (dtype was unset, is "bfloat16")' in said
        assert "throw its 3 finished files away with --start-over" in said
        merge(begun, out, *SMALL, "--start-over")
        (shard, *_) = sorted(out.glob("model-*.safetensors"))
        assert {tensor.dtype for tensor in load_file(shard).values()} == {torch.bfloat16}
        assert not (out / UNFINISHED).exists()

    def test_other_options(self, begun: Path, out: Path) -> None:
        said = merge(begun, out, *SMALL, "--random-seed", "5", status=1).output
        assert "(--random-seed was unset, is 5)" in said
        said = merge(begun, out, "--out-shard-size", "1M", status=1).output
        assert "(--out-shard-size was 9000, is 1000000)" in said

    def test_another_model_at_the_same_place(self, begun: Path, out: Path) -> None:
        weights = begun.parent / "expert0" / "model.safetensors"
        tensors = load_file(weights)
        tensors["model.norm.weight"] += 1
        save_file(tensors, weights, metadata={"format": "pt"})
        said = merge(begun, out, *SMALL, status=1).output
        assert f"(files of {begun.parent / 'expert0'} have changed since)" in said

    def test_other_words_for_the_same_are_none(self, begun: Path, out: Path) -> None:
        begun.write_text("# a remark\n" + begun.read_text())
        merge(begun, out, *SMALL)
        assert (out / "mergekit_config.yml").read_text().startswith("# a remark")

    def test_two_at_once(self, begun: Path, out: Path) -> None:
        with (out / UNFINISHED / "journal.jsonl").open("ab") as other:
            keep_others_out(other.fileno(), "")
            said = merge(begun, out, *SMALL, status=1).output
            assert "another process is writing it; wait for it, or stop it" in said
            assert "another process" in merge(begun, out, *SMALL, "--start-over", status=1).output
        merge(begun, out, *SMALL)

    def test_a_damaged_journal(self, begun: Path, out: Path) -> None:
        journal = out / UNFINISHED / "journal.jsonl"
        journal.write_bytes(b"not JSON\n" + journal.read_bytes())
        said = merge(begun, out, *SMALL, status=1).output
        assert "is no journal of a merge that can be continued" in said and "--start-over throws" in said
        merge(begun, out, *SMALL, "--start-over")

    def test_a_folder_that_cannot_be_made(self, begun: Path, out: Path) -> None:
        (out.parent / "file").write_text("")
        said = merge(begun, out.parent / "file" / "out", status=1).output
        assert "nothing can be written there (Not a directory)" in said

    def test_a_folder_of_something_else(self, begun: Path, out: Path) -> None:
        (out.parent / "full").mkdir()
        (out.parent / "full" / "notes.txt").write_text("mine")
        said = merge(begun, out.parent / "full", status=1).output
        assert "is there already and not empty" in said
        merge(begun, out, *SMALL)
        assert "is there already and not empty" in merge(begun, out, *SMALL, status=1).output


def test_a_tokenizer_is_built_once(absolute: Path, out: Path, ended_after) -> None:
    """The union of vocabularies has another order in every process, and embeddings follow it."""
    family = write_family(absolute / "models", experts=0)
    experts = []
    for i in range(3):
        path = absolute / "models" / f"expert{i}"
        tokenizer = tiny_tokenizer()
        tokenizer.add_tokens([f"<own-{i}-{j}>" for j in range(12)])
        tiny_model("llama", seed=i + 1, vocab_size=len(tokenizer)).save_pretrained(path)
        tokenizer.save_pretrained(path)
        experts.append(path)
    content = merge_config(Family(family.base, experts), "linear", parameters={"weight": 0.3}, tokenizer_source="union")
    config = absolute / "union.yml"
    config.write_text(yaml.safe_dump(content))
    first_shard_embeds = ("--out-shard-size", "30000")
    ended_after(1)
    merge(config, out, *first_shard_embeds, status=130)
    (begun,) = pieces(out)
    (name,) = load_file(begun)
    rows = load_file(begun)[name]
    ended_after(None)
    merge(config, out, *first_shard_embeds)
    from transformers import AutoTokenizer

    vocabulary = AutoTokenizer.from_pretrained(out).get_vocab()
    other = "model.embed_tokens.weight" if name == "lm_head.weight" else "lm_head.weight"
    merged = {key: value for file in out.glob("*.safetensors") for key, value in load_file(file).items()}
    assert torch.equal(merged[name], rows)
    for i, expert in enumerate(experts):
        own = load_file(expert / "model.safetensors")
        known = AutoTokenizer.from_pretrained(expert).get_vocab()
        for tensor in (name, other):
            for j in range(12):
                token = f"<own-{i}-{j}>"
                # Models without a token have none of its rows, so what mergekit puts there is the expert's own.
                assert torch.allclose(merged[tensor][vocabulary[token]], own[tensor][known[token]], atol=1e-6)


def test_adapters_are_merged_on_as_they_were(llama: Family, absolute: Path, out: Path, ended_after) -> None:
    """As the products they are, which mergekit-yaml cannot: the reference is a merge that nobody disturbed."""
    adapters = write_adapters(llama.base, absolute / "adapters")
    models = [{"model": f"{llama.base}+{adapter}"} for adapter in adapters]
    config = absolute / "adapters.yml"
    config.write_text(yaml.safe_dump({"merge_method": "tsvm", "base_model": str(llama.base), "models": models}))
    undisturbed = absolute / "undisturbed" / "out"
    merge(config, undisturbed, *SMALL)
    ended_after(4)
    merge(config, out, *SMALL, status=130)
    ended_after(None)
    said = merge(config, out, *SMALL, "--lora", "dense", status=1).output
    assert '(--lora was "auto", is "dense")' in said
    merge(config, out, *SMALL)
    assert files(out) == files(undisturbed)
    ended_after(2)
    merge(config, absolute / "other", *SMALL, status=130)
    change_tensors(adapters[1], lambda tensors: {name: 2 * tensor for name, tensor in tensors.items()})
    said = merge(config, absolute / "other", *SMALL, status=1).output
    assert f"(files of {adapters[1]} have changed since)" in said


def test_a_record_keeps_what_was_merged_before(write_config, absolute: Path, out: Path, ended_after) -> None:
    config = write_config("tsvm", record=str(absolute / "record"))
    ended_after(5)
    merge(config, out, *SMALL, status=130)
    ended_after(None)
    merge(config, out, *SMALL)
    header, lines = read_record(absolute / "record")
    tensors = json.loads((out / "model.safetensors.index.json").read_text())["weight_map"]
    assert set(lines) == set(tensors) and header["method"] == "tsvm"


class TestNonFinite:
    @pytest.fixture
    def config(self, write_config) -> Path:
        """float16 holds nothing beyond 65504."""
        return write_config("linear", weight=1e6, normalize=False, top={"out_dtype": "float16"})

    def test_are_refused_by_name(self, config: Path, out: Path) -> None:
        said = merge(config, out, status=1).output
        assert "of the merged model has" in said and "numbers that are not finite" in said
        assert "tensor 'lm_head.weight'" in said and not out.exists()

    def test_are_told_if_they_are_wanted(self, config: Path, out: Path, reference, caplog) -> None:
        expected = reference(config)
        merge(config, out, "--allow-non-finite")
        assert files(out) == expected and "tensor 'lm_head.weight' of the merged model has" in caplog.text
