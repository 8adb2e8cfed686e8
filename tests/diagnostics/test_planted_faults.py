"""Models with one fault each: it is found and named, and nothing else is; sound models give no finding."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from lint.workshop import Workshop
from safetensors.torch import load_file
from tiny_models import tiny_model, tiny_tokenizer
from torch import Tensor

from mergekit_3h.diagnostics.conclusions import Conclusion, Inspection, conclusions
from mergekit_3h.diagnostics.subjects import subject_of_config
from mergekit_3h.diagnostics.summary import suggested_config
from mergekit_3h.diagnostics.survey import options_of, survey


def inspected(workshop: Workshop, method: str = "tsvm", **parameters: Any) -> Inspection:
    config = workshop.config(method, parameters=parameters or {"weight": 1.0})
    subject = subject_of_config(workshop.write(config))
    options = options_of(subject.config)
    return Inspection(
        base=subject.base,
        experts=subject.labels,
        rows=survey(subject, options, quiet=True),
        settings=options.settings(),
        method=subject.method,
        findings=subject.findings,
        tied=subject.tied,
    )


def raised(workshop: Workshop, **how: Any) -> dict[str, Conclusion]:
    """Warnings and errors by their rule."""
    found = conclusions(inspected(workshop, **how))
    return {each.rule: each for each in found if each.verdict in ("warning", "error")}


def only(workshop: Workshop, rule: str, **how: Any) -> Conclusion:
    found = raised(workshop, **how)
    assert list(found) == [rule], found
    return found[rule]


def change_update(workshop: Workshop, expert: int, change: Callable[[str, Tensor, Tensor], Tensor]) -> None:
    """Replace each update D of an expert by ``change(name, D, W_0)``."""
    base = load_file(workshop.base / "model.safetensors")

    def edit(tensors: dict[str, Tensor]) -> None:
        for name, tensor in tensors.items():
            start = base[name].float()
            tensors[name] = (start + change(name, tensor.float() - start, start)).to(tensor.dtype)

    workshop.edit_weights(workshop.experts[expert], edit)


@pytest.mark.parametrize(
    ("architecture", "choices"),
    [
        ("llama", {}),
        ("llama", {"dtype": torch.float32, "max_shard_size": "50KB"}),
        ("llama-tied", {}),
        ("gpt2", {}),
        ("mixtral", {}),
        ("llama", {"experts": 1}),
    ],
    ids=["llama", "sharded", "tied", "gpt2", "mixtral", "one expert"],
)
def test_sound_models_raise_nothing(trio: Callable[..., Workshop], architecture: str, choices: dict[str, Any]) -> None:
    found = conclusions(inspected(trio(architecture, **choices)))
    assert [each for each in found if each.verdict != "fine"] == []
    assert len({each.question for each in found}) == 10


def test_an_expert_of_another_base(trio: Callable[..., Workshop]) -> None:
    workshop = trio()
    tiny_model("llama", seed=7, dtype=torch.bfloat16).save_pretrained(workshop.experts[1])
    found = raised(workshop)
    assert "expert1 hardly does" in found["wrong-base"].text
    assert abs(found["wrong-base"].numbers["weight_cosine"]) < 0.2 and found["wrong-base"].verdict == "error"
    assert set(found) == {"wrong-base", "dominating-expert"}  # a stranger's "update" is as large as the base


def test_experts_of_a_later_model(trio: Callable[..., Workshop]) -> None:
    """All come from one model that is not the base: their common update is in each of them."""
    workshop = trio()
    generator = torch.Generator()
    for expert in range(3):

        def add_common(name: str, delta: Tensor, start: Tensor) -> Tensor:
            generator.manual_seed(len(name) + start.numel())
            return delta + 4e-3 * torch.randn(delta.shape, generator=generator)

        change_update(workshop, expert, add_common)
    found = only(workshop, "common-origin")
    assert found.numbers["least_cosine"] > 0.9 and "instruct version" in found.advice


def test_an_expert_that_is_the_base(trio: Callable[..., Workshop]) -> None:
    workshop = trio()
    shutil.copy(workshop.base / "model.safetensors", workshop.experts[2] / "model.safetensors")
    found = raised(workshop)
    assert "expert2 equals the base" in found["expert-equals-base"].text
    assert set(found) == {"expert-equals-base"}


def test_a_duplicate_expert(trio: Callable[..., Workshop]) -> None:
    workshop = trio()
    shutil.copy(workshop.experts[0] / "model.safetensors", workshop.experts[2] / "model.safetensors")
    found = only(workshop, "equal-experts")
    assert "expert0 and expert2 are the same" in found.text
    assert found.options == {"weights": {"expert0": 0.5, "expert2": 0.5}}


def test_two_checkpoints_of_one_training(trio: Callable[..., Workshop]) -> None:
    workshop = trio(dtype=torch.float32)
    shutil.copy(workshop.experts[0] / "model.safetensors", workshop.experts[2] / "model.safetensors")
    change_update(workshop, 2, lambda _, delta, __: delta + 1e-4 * torch.randn_like(delta))
    found = only(workshop, "similar-experts")
    assert "expert0 and expert2 are nearly the same" in found.text and 0.99 < found.numbers["cosine"] < 1


def test_a_dominating_expert(trio: Callable[..., Workshop]) -> None:
    workshop = trio()
    change_update(workshop, 1, lambda _, delta, __: 6 * delta)
    found = only(workshop, "dominating-expert")
    assert "expert1 does" in found.text and found.numbers["ratio"] == pytest.approx(6, rel=0.05)
    inspection = inspected(workshop)
    written = yaml.safe_load(suggested_config(inspection, [found], [str(path) for path in workshop.experts]))
    assert written["models"][1]["parameters"] == {"weight": pytest.approx(1 / 6, abs=0.01)}
    assert "parameters" not in written["models"][0] and written["base_model"] == str(workshop.base)


def test_values_that_are_not_finite(trio: Callable[..., Workshop]) -> None:
    workshop = trio()

    def break_some(tensors: dict[str, Tensor]) -> None:
        tensors["model.layers.1.mlp.up_proj.weight"][0, :3] = torch.nan
        tensors["model.norm.weight"][1] = torch.inf

    workshop.edit_weights(workshop.experts[1], break_some)
    found = only(workshop, "non-finite")
    assert found.verdict == "error" and found.numbers == {"weights": 4, "tensors": 2}
    assert "expert1" in found.text and "model.layers.1.mlp.up_proj.weight" in found.text


def test_two_experts_that_share_their_leading_directions(trio: Callable[..., Workshop]) -> None:
    """Equal subspaces, other updates: within the subspace one is turned, so that their cosine is low."""
    workshop = trio()

    def add_leading(seed: int) -> Callable[[str, Tensor, Tensor], Tensor]:
        def change(name: str, delta: Tensor, start: Tensor) -> Tensor:
            if delta.ndim < 2:
                return delta
            torch.manual_seed(len(name) + start.numel())
            left, right = (torch.linalg.qr(torch.randn(side, 8))[0] for side in delta.shape)
            torch.manual_seed(seed)
            return delta + 0.04 * left @ torch.linalg.qr(torch.randn(8, 8))[0] @ right.T

        return change

    change_update(workshop, 0, add_leading(1))
    change_update(workshop, 2, add_leading(2))
    found = only(workshop, "shared-directions")
    assert "expert0 and expert2 share their 8 leading directions in 16 of 16 matrices" in found.text
    assert found.numbers["overlap"] > 0.9
    pair = next(row.pairs[1] for row in inspected(workshop).rows if "up_proj" in row.tensor)
    assert (pair.first, pair.second) == (0, 2) and abs(pair.cosine) < 0.5


def test_another_vocabulary(trio: Callable[..., Workshop]) -> None:
    workshop = trio()
    model = tiny_model("llama", dtype=torch.bfloat16)
    model.resize_token_embeddings(400)
    model.save_pretrained(workshop.experts[0])
    found = raised(workshop)
    assert set(found) == {"shape", "not-compared", "expert-equals-base"}
    assert "embed_tokens" in found["shape"].text and "tokenizer_source" in found["shape"].advice
    assert found["not-compared"].numbers == {"tensors": 2}


def test_other_tokens_behind_the_same_ids(trio: Callable[..., Workshop]) -> None:
    workshop = trio()
    tokenizer = tiny_tokenizer()
    tokenizer.add_tokens(["<think>"])
    tokenizer.save_pretrained(workshop.experts[0])
    assert "<think>" in only(workshop, "vocabulary").text


def test_embeddings_tied_in_one_model_only(trio: Callable[..., Workshop]) -> None:
    workshop = trio()
    workshop.edit_json(workshop.experts[1] / "config.json", lambda config: config.update(tie_word_embeddings=True))
    assert "expert1 ties its head" in only(workshop, "tied-embedding").text


def test_rounding_that_hides_the_update(trio: Callable[..., Workshop]) -> None:
    workshop = trio(update=2e-5)
    found = conclusions(inspected(workshop))
    hidden = [each for each in found if each.rule == "rounding-hides-update"]
    assert len(hidden) == 3 and {each.verdict for each in found} == {"fine", "warning"}
    unchanged = [
        float((expert[name] == start).double().mean())
        for expert in [load_file(workshop.experts[0] / "model.safetensors")]
        for name, start in load_file(workshop.base / "model.safetensors").items()
        if name == "lm_head.weight"
    ]
    row = next(row for row in inspected(workshop).rows if row.tensor == "lm_head.weight")
    assert row.experts[0].unchanged == pytest.approx(unchanged[0]) and unchanged[0] > 0.5


def test_merged_adapters_are_told_from_full_fine_tunings(trio: Callable[..., Workshop]) -> None:
    workshop = trio(hidden_size=96, intermediate_size=160, num_attention_heads=4)

    def of_rank_4(name: str, delta: Tensor, start: Tensor) -> Tensor:
        if delta.ndim < 2 or "embed" in name or "lm_head" in name:
            return torch.zeros_like(delta)
        u, s, vh = torch.linalg.svd(delta, full_matrices=False)
        return 3 * u[:, :4] @ torch.diag(s[:4]) @ vh[:4]

    change_update(workshop, 0, of_rank_4)
    found = conclusions(inspected(workshop))
    told = [each for each in found if each.rule in ("merged-lora", "full-update")]
    assert told[0].text.startswith("expert0 is a LoRA of rank 4 merged into bfloat16: under the rounding edge lies 1.0")
    assert told[0].numbers["agree"] == told[0].numbers["matrices"] == 14
    assert [each.rule for each in told[1:]] == ["full-update"] * 2


def test_nothing_is_told_of_experts_that_were_not_rounded(trio: Callable[..., Workshop]) -> None:
    found = conclusions(inspected(trio(dtype=torch.float32)))
    assert [each.rule for each in found if "merged LoRAs" in each.question] == ["not-told"]


def test_a_rank_that_does_not_adapt(trio: Callable[..., Workshop]) -> None:
    """Layers of different size, which an epsilon relative to each cannot see; the proposed one does what it says."""
    workshop = trio(num_hidden_layers=4, dtype=torch.float32)
    for expert in range(3):
        change_update(
            workshop, expert, lambda name, delta, _: delta * (1 + 3 * ("layers.2" in name or "layers.3" in name))
        )
    found = only(workshop, "constant-rank", method="rtsvm")
    assert found.numbers["new_high"] - found.numbers["new_low"] > 0.3
    adapted = conclusions(inspected(workshop, "rtsvm", **found.options))
    assert {each.rule for each in adapted} >= {"rank-adapts"}
    again = next(each for each in adapted if each.rule == "rank-adapts").text
    assert f"{found.numbers['new_low']:.2f} to {found.numbers['new_high']:.2f}" in again


def test_the_papers_epsilon_makes_the_rank_constant(trio: Callable[..., Workshop]) -> None:
    found = {each.rule: each for each in conclusions(inspected(trio(), "rtsvm", preset="paper"))}
    assert "Omega is 1.00 to 1.00" in found["constant-rank"].text


def test_outlier_weights_that_turn_experts_down(trio: Callable[..., Workshop]) -> None:
    """One expert's update is large in every sixth place and small elsewhere: the others have next to no outliers."""
    workshop = trio(dtype=torch.float32)
    for expert in (0, 2):
        change_update(workshop, expert, lambda _, delta, __: delta.clamp(-1e-3, 1e-3))

    def with_outliers(_: str, delta: Tensor, __: Tensor) -> Tensor:
        changed = torch.zeros_like(delta).flatten()
        changed[::6] = 2e-3
        changed[::60] = -2e-2
        return changed.reshape(delta.shape)

    change_update(workshop, 1, with_outliers)
    found = raised(workshop, method="rtsvm")["uneven-outlier-weights"]
    assert found.verdict == "warning" and found.numbers["ratio"] > 4
    assert found.options == {"outlier_weighting": "none"}
    settled = raised(workshop, method="rtsvm", **found.options)
    assert "uneven-outlier-weights" not in settled
    assert "uneven-outlier-weights" not in raised(workshop, method="tsvm")


def test_conclusions_of_nothing_measured(trio: Callable[..., Workshop], absolute: Path) -> None:
    """Every question has an answer for an inspection without a single matrix."""
    inspection = replace(inspected(trio()), rows=[])
    assert len({each.question for each in conclusions(inspection)}) == 10
