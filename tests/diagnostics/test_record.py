"""The record that a merge leaves in both hosts, and what inspect makes of it."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from diagnostics.test_inspect_command import as_options, inspect
from hosts import merge_config, mergekit_yaml, read_model
from tiny_models import Family
from torch import Tensor

from mergekit_3h.diagnostics import record
from mergekit_3h.diagnostics.lines import GrowingLines
from mergekit_3h.diagnostics.record import RECORD, outcome, read_record, watcher
from mergekit_3h.errors import OptionError
from mergekit_3h.spectral.registry import parse_options
from mergekit_3h.spectral.tensors import merge_tensor

OPTIONS = {"lambda": 0.7, "gamma": 0.3}


@pytest.fixture
def rounded(family: Callable[..., Family]) -> Family:
    return family("llama", experts=3, update=1e-3, dtype=torch.bfloat16)


@pytest.fixture
def recorded(rounded: Family, absolute: Path) -> tuple[Path, Path, Path]:
    """The config of a real merge, its record and its result."""
    folder = absolute / "record"
    config = merge_config(rounded, "rtsvm", weights=[1.0, 0.5, 1.0], parameters={**OPTIONS, "record": str(folder)})
    mergekit_yaml(config, absolute / "merged")
    return absolute / "merged.yml", folder, absolute / "merged"


def survival_by_hand(base: Tensor, experts: list[Tensor], update: Tensor) -> list[float]:
    deltas = [(expert.double() - base.double()).flatten() for expert in experts]
    return [float(update.double().flatten() @ delta / (delta @ delta)) if delta.any() else 0.0 for delta in deltas]


def test_inspect_gives_the_numbers_that_the_merge_used(recorded: tuple[Path, Path, Path]) -> None:
    """alpha, Omega, budget, edges and ranks of every matrix, out of a real mergekit-yaml."""
    config, folder, _ = recorded
    header, lines = read_record(folder)
    assert header["method"] == "rtsvm" and [Path(model).name for model in header["models"]] == [
        "expert0",
        "expert1",
        "expert2",
    ]
    rows = {row["tensor"]: row for row in json.loads(inspect(config, "--json").stdout)["tensors"]}
    assert lines.keys() == rows.keys()
    matrices = [name for name, row in rows.items() if row["matrix"]]
    assert len(matrices) == 16
    for name in matrices:
        line, row, spectra = lines[name], rows[name], [expert["spectrum"] for expert in rows[name]["experts"]]
        assert line["outlier_weights"] == [spectrum["alpha"] for spectrum in spectra]
        assert line["ranks"] == [spectrum["rank"] for spectrum in spectra]
        assert line["noise_edges"] == [spectrum["noise_edge"] for spectrum in spectra]
        assert (line["omega"], line["budget"]) == (row["matrix"]["omega"], row["matrix"]["budget"])


def test_what_survives_and_what_rounding_took(recorded: tuple[Path, Path, Path], rounded: Family) -> None:
    _, folder, merged = recorded
    _, lines = read_record(folder)
    base, result, *experts = [read_model(path) for path in (rounded.base, merged, *rounded.experts)]
    weights, method = dict(zip("abc", (1.0, 0.5, 1.0), strict=True)), parse_options("rtsvm", OPTIONS)
    for name, line in lines.items():
        assert line["weights"] == [1.0, 0.5, 1.0] and line["lambda"] == 0.7
        assert line["changed"] == pytest.approx(float((result[name] != base[name]).double().mean()))
        assert 0 <= line["rounded_away"] < 1 - line["changed"] + 1e-9 and line["seconds"] > 0
        assert line["bytes"] == 5 * 2 * base[name].numel()
        in_float32 = {label: expert[name].float() for label, expert in zip("abc", experts, strict=True)}
        exact = merge_tensor(name, base[name].float(), in_float32, weights, method)
        update = exact.double() - base[name].double()
        by_hand = survival_by_hand(base[name], [expert[name] for expert in experts], update)
        assert line["surviving"] == pytest.approx(by_hand, rel=1e-3, abs=1e-6)
        moved = (result[name].double() - exact.double()).norm() / update.norm() if update.any() else 0.0
        assert line["rounding_distance"] == pytest.approx(float(moved), rel=1e-3)


FLOATS = [torch.float16, torch.bfloat16, torch.float32, torch.float64]


@pytest.mark.parametrize("own", FLOATS)
@pytest.mark.parametrize("others", FLOATS)
def test_outcome_written_out(own: torch.dtype, others: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """A base of one dtype and experts of another; many blocks, the last one shorter."""
    monkeypatch.setattr(record, "BLOCK_ELEMENTS", 70)
    dtype = torch.promote_types(own, others)
    base = torch.randn(40, 30).to(own)
    experts = [(base + 0.1 * torch.randn(40, 30)).to(others) for _ in range(2)]
    if own == others:
        experts.append(base.clone())
    given = [tensor.clone() for tensor in (base, *experts)]
    exact = base.to(torch.promote_types(dtype, torch.float32)) + 0.01 * torch.randn(40, 30)
    exact[:5] = base[:5]
    result = exact.to(dtype)
    found = outcome(base, experts, exact, result)
    update = exact.double() - base.double()
    by_hand = survival_by_hand(base, experts[:2], update)
    assert found.surviving == pytest.approx(by_hand if own != others else [*by_hand, 0.0], rel=1e-4)
    assert found.changed == pytest.approx(float((result != base).double().mean()))
    given_back = (result == base) & (update != 0)
    assert found.rounded_away == pytest.approx(float(given_back.double().mean()))
    assert (found.rounded_away > 0) == (dtype.itemsize == 2)
    assert found.rounding_distance == pytest.approx(float((result.double() - exact).norm() / update.norm()), rel=1e-3)
    assert all(torch.equal(before, after) for before, after in zip(given, (base, *experts), strict=True))


def test_fusion_bench_leaves_the_same_record(
    recorded: tuple[Path, Path, Path], rounded: Family, tmp_path: Path
) -> None:
    pytest.importorskip("fusion_bench")
    from fusion_bench.modelpool import CausalLMPool

    from fusion_bench_ext.algorithms.spectral import RTSVM

    _, folder, _ = recorded
    names = ["helpful", "honest", "harmless"]
    models = {"_pretrained_": str(rounded.base), **dict(zip(names, map(str, rounded.experts), strict=True))}
    pool = CausalLMPool(models, tokenizer=str(rounded.base), enable_lazy_loading=True)
    RTSVM(weight=[1.0, 0.5, 1.0], record=str(tmp_path / "record"), **OPTIONS).run(pool)
    (header, lines), (_, expected) = read_record(tmp_path / "record"), read_record(folder)
    assert header["models"] == names
    assert {name: {**line, "seconds": 0} for name, line in lines.items()} == {
        name: {**line, "seconds": 0} for name, line in expected.items()
    }


def test_a_later_merge_replaces_the_record(tmp_path: Path) -> None:
    base, expert = torch.randn(24, 16), torch.randn(24, 16)

    def merge(names: list[str], **options: Any) -> None:
        method = parse_options("tsvm", {"record": str(tmp_path), **options})
        for name in names:
            merge_tensor(name, base, {"a": expert}, {"a": 1.0}, method, watch=watcher(method, ["a"]))

    merge(["one", "two"])
    assert set(read_record(tmp_path)[1]) == {"one", "two"}
    merge(["one"], **{"lambda": 0.5})
    _, lines = read_record(tmp_path)
    assert set(lines) == {"one"} and lines["one"]["lambda"] == 0.5
    assert lines["one"]["surviving"] == pytest.approx([0.5], rel=1e-5)
    (tmp_path / RECORD).unlink()
    merge(["one", "two"])
    assert set(read_record(tmp_path)[1]) == {"one", "two"}


class SlowlyOpenedLines(GrowingLines):
    """Gives other threads the time to open the file too."""

    def __init__(self, file: Path) -> None:
        time.sleep(0.05)
        super().__init__(file)


def test_tensors_merged_at_once_share_one_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(record, "GrowingLines", SlowlyOpenedLines)
    base, expert, method = torch.randn(24, 16), torch.randn(24, 16), parse_options("tsvm", {"record": str(tmp_path)})
    start = threading.Barrier(8)

    def merge(number: int) -> None:
        start.wait()
        merge_tensor(f"t{number}", base, {"a": expert}, {"a": 1.0}, method, watch=watcher(method, ["a"]))

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(merge, range(8)))
    assert set(read_record(tmp_path)[1]) == {f"t{number}" for number in range(8)}


def test_fused_experts_leave_a_line_each(tmp_path: Path) -> None:
    base, method = torch.randn(5, 12, 10), parse_options("tsvm", {"record": str(tmp_path)})
    experts = {label: base + 0.01 * torch.randn(5, 12, 10) for label in "ab"}
    merge_tensor("fused", base, experts, dict.fromkeys("ab", 1.0), method, watch=watcher(method, ["a", "b"]))
    assert set(read_record(tmp_path)[1]) == {f"fused[{i}]" for i in range(5)}


def test_no_record_unless_asked_for(rounded: Family, absolute: Path) -> None:
    assert watcher(parse_options("rtsvm", {}), ["a"]) is None
    mergekit_yaml(merge_config(rounded, "rtsvm"), absolute / "merged")
    assert list(absolute.rglob(RECORD)) == []


def test_inspect_shows_the_record(recorded: tuple[Path, Path, Path], rounded: Family, tmp_path: Path) -> None:
    """The config's own, or one that is named; on the page too."""
    config, folder, _ = recorded
    text = inspect(config, "--out", tmp_path / "out").output
    assert "What did the merge keep?" in text and "expert1 0." in text
    page = (tmp_path / "out" / "index.html").read_text()
    rows = json.loads(page.partition('id="inspection">')[2].partition("</script>")[0])["rows"]
    assert all(len(row["record"]["surviving"]) == 3 for row in rows)
    named = inspect(*as_options(rounded), "--record", folder).output
    assert "What did the merge keep?" in named
    fewer = inspect(*as_options(rounded)[:4], "--record", folder, check=False)
    assert fewer.exit_code == 1 and "is of a merge of" in fewer.output
    nothing = inspect(*as_options(rounded), "--record", tmp_path / "none", check=False)
    assert nothing.exit_code == 1 and "holds no record.jsonl" in nothing.output


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    method = parse_options("tsvm", {"record": str(tmp_path / "file" / "record")})
    with pytest.raises(OptionError, match="option 'record': cannot write to"):
        watcher(method, ["a"])


def test_record_of_all_layers_alike_is_a_text(rounded: Family, absolute: Path) -> None:
    config = merge_config(rounded, "rtsvm", parameters={"record": 3})
    done = mergekit_yaml(config, absolute / "merged", check=False)
    assert done.returncode == 1 and "option 'record'" in done.stderr and "Traceback" not in done.stderr
    assert yaml.safe_load((absolute / "merged.yml").read_text())["parameters"] == {"record": 3}
