"""The layer gate through ``mergekit-yaml``, FusionBench's configs, ``check`` and ``inspect``, on checkpoints."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from fusion_bench.modelpool import CausalLMPool
from hosts import mergekit_yaml, run
from hydra.utils import instantiate
from tiny_adapters import write_adapters
from tiny_models import Family

from fusion_bench_ext.algorithms import TSVM
from mergekit_3h.diagnostics.record import read_record
from mergekit_3h.diagnostics.subjects import subject_of_config
from mergekit_3h.errors import OptionError, TensorError
from mergekit_3h.lint import lint
from mergekit_3h.spectral.registry import parse_options
from mergekit_3h.spectral.tensors import merge_tensor

from .conftest import differing, stored
from .test_configs import compose

NAMES = ("math", "code", "safe", "plain")
ROLES = {"safe": "safety", "plain": "unaligned"}
THRESHOLD = 0.72
"""Between the cosines of these random experts."""


@pytest.fixture
def four(family: Any) -> Family:
    return family("llama", experts=4, dtype=torch.bfloat16)


def config(models: Family, roles: dict[str, str] | None = None, **parameters: Any) -> dict[str, Any]:
    roles = ROLES if roles is None else roles
    listed = [
        {"model": str(path), **({"parameters": {"role": roles[name]}} if name in roles else {})}
        for name, path in zip(NAMES, models.experts, strict=True)
    ]
    options = {"gate_threshold": THRESHOLD, "gate_share": 0.5, **parameters}
    given = {name: value for name, value in options.items() if value is not None}
    return {"merge_method": "tsvm", "base_model": str(models.base), "models": listed, "parameters": given}


def pool(models: Family, **others: Path) -> CausalLMPool:
    named = dict(zip(NAMES, map(str, models.experts), strict=True)) | {name: str(path) for name, path in others.items()}
    return CausalLMPool({"_pretrained_": str(models.base), **named}, tokenizer=str(models.base))


def test_both_hosts_gate_to_the_same_bits(four: Family, absolute: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "mergekit_3h.spectral.gate"):
        mergekit_yaml(config(four, record=str(absolute / "record")), absolute / "out")
    algorithm = instantiate(
        compose(
            "method=tsvm",
            "method.role={safe: safety, plain: unaligned}",
            f"method.gate_threshold={THRESHOLD}",
            "method.gate_share=0.5",
            f"method.model_save_path={absolute / 'bench'}",
        ).method
    )
    algorithm.run(pool(four))
    merged = stored(absolute / "out")
    assert differing(stored(absolute / "bench"), merged) == []
    header, lines = read_record(absolute / "record")
    assert header["models"] == [str(path) for path in four.experts[:2]]
    gated = [gate for line in lines.values() for gate in line.get("gated", ())]
    assert len(gated) == 2 * sum(tensor.ndim == 2 for tensor in merged.values()) and 0 < sum(gated) < len(gated)
    named = next(name for name, line in lines.items() if any(line.get("gated", ())))
    assert f"{named}: updates below the gate's threshold 0.72 are replaced by the safety model to 50%" in caplog.text


def test_the_merged_tensors_are_those_of_the_gate(four: Family, absolute: Path) -> None:
    mergekit_yaml(config(four, gate_threshold=1.0, gate_share=1.0), absolute / "out")
    base, safe = stored(four.base), stored(four.experts[2])
    name = "model.layers.0.mlp.up_proj.weight"
    twice = dict.fromkeys("ab", safe[name])  # both experts are gated and replaced
    expected = merge_tensor(name, base[name], twice, dict.fromkeys("ab", 1.0), parse_options("tsvm", {}))
    assert torch.equal(stored(absolute / "out")[name], expected)


def test_adapters_are_gated_as_whole_models(family: Any, four: Family, absolute: Path) -> None:
    """mergekit merges them into their base first; FusionBench does so on the way: the same bits."""
    adapters = write_adapters(four.base, absolute / "adapters")[:2]
    given = config(four, record=str(absolute / "record"))
    for model, adapter in zip(given["models"], adapters, strict=False):
        model["model"] = f"{four.base}+{adapter}"
    mergekit_yaml(given, absolute / "out", "--lora-merge-cache", str(absolute / "cache"))
    algorithm = TSVM(role=ROLES, gate_threshold=THRESHOLD, gate_share=0.5)
    merged = algorithm.run(pool(four, **dict(zip(NAMES, adapters, strict=False)))).state_dict()
    assert all(torch.equal(merged[name], tensor) for name, tensor in stored(absolute / "out").items())
    with pytest.raises(
        OptionError, match="'lora': the layer gate compares the experts with plain and safe, which takes whole updates"
    ):
        TSVM(role=ROLES, lora="core").run(pool(four, **dict(zip(NAMES, adapters, strict=False))))
    with pytest.raises(OptionError, match="'adapter_save_path': the layer gate compares"):
        never = str(absolute / "adapter")
        TSVM(role=ROLES, adapter_save_path=never).run(pool(four, **dict(zip(NAMES, adapters, strict=False))))
    done = run("mergekit-3h", "merge", absolute / "out.yml", absolute / "never", "--lora", "core", check=False)
    assert done.returncode and "--lora core: the layer gate compares the experts with" in done.stderr


def test_check_and_inspect_understand_roles(four: Family, absolute: Path) -> None:
    import yaml

    file = absolute / "config.yml"
    file.write_text(yaml.safe_dump(config(four)))
    assert [finding for finding in lint(file, deep=True) if finding.severity != "note"] == []
    assert subject_of_config(file).experts == tuple(map(str, four.experts[:2]))


@pytest.mark.parametrize(
    ("roles", "parameters", "message"),
    [
        ({"safe": "safety"}, {}, "is safety, but no model is unaligned"),
        ({"safe": "unaligned", "plain": "unaligned"}, {}, "are both unaligned; expected one model"),
        (dict.fromkeys(NAMES[:2], "unaligned"), {}, "are both unaligned"),
        ({"plain": "unalined"}, {}, "option 'role': got 'unalined'; input should be 'expert', 'unaligned' or 'safety'"),
        ({}, {}, "'gate_threshold' is of the layer gate, and no model has role: unaligned"),
        (ROLES, {"gate_threshold": 1.5}, "option 'gate_threshold': got 1.5; input should be less than or equal to 1"),
        (ROLES, {"role": "expert"}, "'role' says what one model is for"),
    ],
)
def test_what_does_not_go_together_is_said_before_anything_is_read(
    four: Family, absolute: Path, roles: dict[str, str], parameters: dict[str, Any], message: str
) -> None:
    done = mergekit_yaml(config(four, roles, **parameters), absolute / "out", check=False)
    assert done.returncode and message in done.stderr
    assert not (absolute / "out").exists() or not list((absolute / "out").glob("*.safetensors"))


def test_a_role_for_single_tensors_is_refused(four: Family, absolute: Path) -> None:
    given = config(four)
    given["models"][3]["parameters"]["role"] = [{"filter": "mlp", "value": "unaligned"}, {"value": "expert"}]
    done = mergekit_yaml(given, absolute / "out", check=False)
    assert done.returncode and "'role' is the same for all tensors of a model" in done.stderr


def test_a_weight_of_a_model_that_is_not_merged_is_warned_of(four: Family) -> None:
    import yaml

    given = config(four)
    given["models"][2]["parameters"]["weight"] = 0.5
    [finding] = [each for each in lint(yaml.safe_dump(given)) if each.rule == "no-effect"]
    assert finding.severity == "warning" and finding.where == "models[2].parameters.weight"
    assert "is compared with and not merged, so its weight has no effect" in finding.message


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"role": {"plane": "unaligned"}}, r"'role': the pool has no model 'plane' to merge; did you mean 'plain'\?"),
        ({"role": {"plain": "unalined"}}, "'role': got 'unalined'"),
        ({"role": "unaligned"}, "'role': got 'unaligned'; expected a mapping"),
        ({"role": {"safe": "safety"}}, "safe is safety, but no model is unaligned"),
        ({"gate_threshold": 0.5}, "'gate_threshold': got 0.5, but no model has role: unaligned"),
        ({"role": ROLES, "weight": [1.0] * 4}, r"'weight': got 4 numbers for 2 models"),
        ({"role": ROLES, "weight": {"safe": 1.0}}, "'weight': the pool has no model 'safe'"),
    ],
)
def test_fusion_bench_says_what_does_not_go_together(four: Family, options: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        TSVM(**options).run(pool(four))


def test_searches_refuse_the_gate(four: Family, absolute: Path) -> None:
    data = absolute / "data.jsonl"
    data.write_text("")
    given = {
        **config(four, gate_threshold=None, gate_share=None, combine="tsvm", data=str(data)),
        "merge_method": "safety_merge",
    }
    done = mergekit_yaml(given, absolute / "out", check=False)
    assert done.returncode and "role: a search merges all models, without the layer gate" in done.stderr


def test_an_unaligned_model_with_another_vocabulary_needs_mergekits_alignment(
    family: Any, four: Family, absolute: Path
) -> None:
    larger = family("llama", experts=1, dtype=torch.bfloat16, vocab_size=400).base
    given = config(four)
    given["models"][3]["model"] = str(larger)
    done = mergekit_yaml(given, absolute / "out", check=False)
    assert done.returncode and "embed_tokens" in done.stderr and str(larger) in done.stderr
    mergekit_yaml({**given, "tokenizer": {"source": "base"}}, absolute / "aligned")
    assert stored(absolute / "aligned")["model.embed_tokens.weight"].shape[1] == 32
    message = r"'model.embed_tokens.weight' is \[400, 32\] in .*'plain'"
    with pytest.raises(TensorError, match=message):
        TSVM(role=ROLES).run(pool(four, plain=larger))
