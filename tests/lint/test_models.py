"""What check says about the models of a config: real checkpoints, each damaged in one way."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lint.workshop import Workshop, all_of, only
from safetensors.torch import load_file, save_file
from tiny_models import Family, tiny_tokenizer
from transformers import OPTConfig, OPTForCausalLM

from mergekit_3h.lint import examine, lint
from mergekit_3h.lint.host_plan import planned_tensors
from mergekit_3h.lint.models import named_models
from mergekit_3h.lint.planned_merge import PlannedMerge
from mergekit_3h.lint.source import read_documents


@pytest.mark.parametrize("method", ["ties", "tsvm", "rtsvm"])
@pytest.mark.parametrize(
    ("architecture", "choices"),
    [
        ("llama", {}),
        ("llama-tied", {"dtype": torch.bfloat16}),
        ("gpt2", {}),
        ("mixtral", {}),
        ("llama", {"max_shard_size": "50KB"}),
    ],
    ids=["llama", "tied", "gpt2", "mixtral", "sharded"],
)
def test_sound_merge_gives_no_findings(
    workshop: Callable[..., Workshop], method: str, architecture: str, choices: dict[str, Any]
) -> None:
    sound = workshop(architecture, **choices)
    if "max_shard_size" in choices:
        assert (sound.base / "model.safetensors.index.json").exists()
    report = examine(sound.write(sound.config(method)), deep=True)
    # Of 16-bit checkpoints it is told how far rounding moved the updates.
    told = {("note", "rounded-update")} if "dtype" in choices else set()
    assert {(finding.severity, finding.rule) for finding in report.findings} == told
    written = sum(file.stat().st_size for file in sound.base.glob("*.safetensors"))
    # The headers of the files are the difference: a few kB at this size.
    assert 0.8 * written < report.estimates[0].output_bytes <= written
    assert report.estimates[0].read_bytes == 3 * report.estimates[0].output_bytes
    assert report.estimates[0].seconds > 0 and report.estimates[0].peak_bytes > written


def test_missing_model(llamas: Workshop) -> None:
    models = [{"model": str(llamas.folder / "expret0")}, {"model": str(llamas.experts[1])}]
    finding = only(llamas.lint(llamas.config(models=models)), "missing-model")
    assert finding.severity == "error" and finding.where == "models[0]" and finding.line == 4
    assert "expert0" in finding.advice


def test_path_relative_to_the_config_instead_of_the_working_directory(llamas: Workshop) -> None:
    config = llamas.config(models=[{"model": "./expert0"}, {"model": str(llamas.experts[1])}])
    finding = only(llamas.lint(config), "missing-model")
    assert str(llamas.experts[0]) in finding.advice


def test_home_directory_is_not_expanded(llamas: Workshop) -> None:
    finding = only(llamas.lint(llamas.config(models=[{"model": "~/expert"}])), "missing-model")
    assert "does not expand ~" in finding.advice


def test_model_of_the_hub(llamas: Workshop, monkeypatch: pytest.MonkeyPatch) -> None:
    config = llamas.config(models=[{"model": "some-org/some-model"}, {"model": str(llamas.experts[0])}])
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert only(llamas.lint(config), "offline").severity == "error"
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    finding = only(llamas.lint(config), "download")
    assert finding.severity == "note" and "would download" in finding.message


def test_relative_path_and_the_model_card(llamas: Workshop, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(llamas.folder)
    config = llamas.config(models=[{"model": "expert0"}, {"model": str(llamas.experts[1])}])
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    finding = only(llamas.lint(config), "relative-path")
    assert finding.severity == "error" and str(llamas.experts[0]) in finding.advice
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    assert only(llamas.lint(config), "relative-path").severity == "warning"


def test_truncated_weights(llamas: Workshop) -> None:
    file = llamas.experts[0] / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1000])
    finding = only(llamas.lint(llamas.config()), "weight-files")
    assert "truncated" in finding.message and str(file) in finding.message
    whole = (llamas.experts[1] / "model.safetensors").read_bytes()
    file.write_bytes(whole + b"\0")
    assert "damaged" in only(llamas.lint(llamas.config()), "weight-files").message


@pytest.mark.parametrize(
    "content", [b"", b"abc", b"version https://git-lfs.github.com/spec/v1\n", b"\x05" + b"\0" * 7 + b"[[[[["]
)
def test_no_safetensors_file_at_all(llamas: Workshop, content: bytes) -> None:
    file = llamas.experts[0] / "model.safetensors"
    file.write_bytes(content)
    finding = only(llamas.lint(llamas.config()), "weight-files")
    assert str(file) in finding.message and finding.model == str(llamas.experts[0])


def test_no_weights(llamas: Workshop) -> None:
    (llamas.experts[0] / "model.safetensors").rename(llamas.experts[0] / "weights.safetensors")
    finding = only(llamas.lint(llamas.config()), "weight-files")
    assert "has no weights" in finding.message and "weights.safetensors" in finding.message


def test_broken_shards(workshop: Callable[..., Workshop]) -> None:
    sharded = workshop("llama", max_shard_size="50KB")
    shard = sorted(sharded.experts[0].glob("*.safetensors"))[0]
    shard.unlink()
    assert shard.name in only(sharded.lint(sharded.config()), "weight-files").message
    index = sharded.experts[1] / "model.safetensors.index.json"
    sharded.edit_json(index, lambda content: content["weight_map"].update({"model.norm.extra": shard.name}))
    messages = [f.message for f in sharded.lint(sharded.config()) if f.rule == "weight-files"]
    assert any("model.norm.extra" in message for message in messages)
    index.write_text("{")
    assert any("not a shard index" in str(finding) for finding in sharded.lint(sharded.config()))


def test_no_model_config(llamas: Workshop) -> None:
    file = llamas.experts[0] / "config.json"
    for content, problem in (
        ('{"architectures": ["LlamaForCausalLM"],', "cannot be read as JSON: Expecting property name"),
        ("[]", "is no JSON object"),
        ("{}", "names no architecture"),
        (None, "is missing"),
    ):
        file.unlink() if content is None else file.write_text(content)
        finding = only(llamas.lint(llamas.config()), "model-config")
        assert finding.message.startswith(f"{file} {problem}") and finding.model == str(llamas.experts[0])


def test_model_with_code_of_its_own(llamas: Workshop) -> None:
    code = {"model_type": "home-made", "auto_map": {"AutoConfig": "home_made.Config"}}
    llamas.edit_json(llamas.experts[0] / "config.json", lambda content: content.update(code))
    finding = only(llamas.lint(llamas.config()), "remote-code")
    assert finding.severity == "note" and "--trust-remote-code" in finding.advice


def test_architecture_that_mergekit_does_not_list(absolute: Path) -> None:
    made = []
    for seed, name in enumerate(("base", "expert0", "expert1")):
        torch.manual_seed(seed)
        sizes = {"hidden_size": 16, "word_embed_proj_dim": 16, "ffn_dim": 24, "num_attention_heads": 2}
        config = OPTConfig(vocab_size=384, num_hidden_layers=2, max_position_embeddings=64, **sizes)
        OPTForCausalLM(config).save_pretrained(absolute / name)
        tiny_tokenizer().save_pretrained(absolute / name)
        made.append(absolute / name)
    strangers = Workshop(absolute, made[0], made[1:])
    assert strangers.lint(strangers.config("rtsvm")) == []
    name = "model.decoder.layers.1.fc1.weight"
    strangers.edit_weights(made[1], lambda tensors: tensors.update({name: tensors[name][:20].clone()}))
    assert only(strangers.lint(strangers.config("rtsvm")), "shape").tensor == name


def test_another_architecture(llamas: Workshop, family: Callable[..., Family]) -> None:
    stranger = str(family("gpt2", experts=2).experts[0])
    config = llamas.config(models=[{"model": stranger}, {"model": str(llamas.experts[0])}])
    finding = only(llamas.lint(config), "architecture")
    assert finding.model == stranger and "GPT2LMHeadModel" in finding.message and "LlamaForCausalLM" in finding.message


def test_another_layer_count(llamas: Workshop, family: Callable[..., Family]) -> None:
    deeper = str(family("llama", experts=2, num_hidden_layers=3).experts[0])
    config = llamas.config(models=[{"model": deeper}, {"model": str(llamas.experts[0])}])
    finding = only(llamas.lint(config), "layer-count")
    assert finding.model == deeper and "3 layers" in finding.message


def test_layer_range_past_the_end(llamas: Workshop) -> None:
    sources = [{"model": str(path), "layer_range": [1, 3]} for path in [llamas.base, *llamas.experts]]
    findings = llamas.lint(llamas.config(models=None, slices=[{"sources": sources}]))
    assert len([f for f in findings if f.rule == "layer-range" and "past the 2 layers" in f.message]) == 3


def test_slices_of_sound_models(llamas: Workshop) -> None:
    sources = [{"model": str(path), "layer_range": [0, 1]} for path in [llamas.base, *llamas.experts]]
    assert llamas.lint(llamas.config(models=None, slices=[{"sources": sources}, {"sources": sources}])) == []


def test_other_shape_names_model_tensor_and_both_shapes(llamas: Workshop) -> None:
    name = "model.layers.1.mlp.up_proj.weight"
    llamas.edit_weights(llamas.experts[1], lambda t: t.update({name: t[name][:40].clone()}))
    finding = only(llamas.lint(llamas.config("rtsvm")), "shape")
    assert (finding.severity, finding.model, finding.tensor) == ("error", str(llamas.experts[1]), name)
    assert "(40, 32)" in finding.message and "(48, 32)" in finding.message


def test_other_shape_of_a_fused_expert(workshop: Callable[..., Workshop]) -> None:
    mixtral = workshop("mixtral")

    def cut_one_expert(tensors: dict[str, Any]) -> None:
        name = next(name for name in tensors if "experts" in name)
        tensors[name] = tensors[name][..., :16].clone()

    mixtral.edit_weights(mixtral.experts[0], cut_one_expert)
    assert "experts" in str(only(mixtral.lint(mixtral.config()), "shape").tensor)


def test_vocabulary_of_another_size(llamas: Workshop) -> None:
    def grow(tensors: dict[str, Any]) -> None:
        for name in ("model.embed_tokens.weight", "lm_head.weight"):
            tensors[name] = torch.cat([tensors[name], tensors[name][:8]])

    llamas.edit_weights(llamas.experts[0], grow)
    findings = [f for f in llamas.lint(llamas.config()) if f.rule == "shape"]
    assert len(findings) == 2 and all("tokenizer_source" in finding.advice for finding in findings)
    assert not [f for f in llamas.lint(llamas.config(tokenizer_source="union")) if f.rule == "shape"]


def test_missing_tensor(llamas: Workshop) -> None:
    name = "model.layers.0.self_attn.q_proj.weight"
    llamas.edit_weights(llamas.experts[0], lambda tensors: tensors.pop(name))
    finding = only(llamas.lint(llamas.config()), "missing-tensor")
    assert (finding.severity, finding.model, finding.tensor) == ("error", str(llamas.experts[0]), name)


def test_filter_that_matches_nothing(llamas: Workshop) -> None:
    density = [{"filter": "self_atn", "value": 0.5}, {"filter": "*.mlp.*", "value": 0.4}, {"filter": "mlp", "value": 1}]
    findings = llamas.lint(llamas.config(parameters={"weight": 1, "density": density}))
    dead = {finding.where: finding.advice for finding in all_of(findings, "dead-filter")}
    assert set(dead) == {"parameters.density[0].filter", "parameters.density[1].filter"}
    assert "'self_attn'" in dead["parameters.density[0].filter"]
    assert "patterns" in dead["parameters.density[1].filter"]


def test_exclusion_that_matches_nothing(llamas: Workshop) -> None:
    exclude = [{"filter": "lm_head", "value": "lm_head"}, {"value": "embed_tokns, *.norm, model.layers.?.mlp.*"}]
    findings = llamas.lint(llamas.config("rtsvm", parameters={"exclude": exclude}))
    assert all((f.rule, f.where) == ("dead-filter", "parameters.exclude") for f in findings)
    advice = {finding.message.split("'")[1]: finding.advice for finding in findings}
    assert set(advice) == {"embed_tokns", "*.norm"}
    assert "'embed_tokens'" in advice["embed_tokns"] and "whole tensor name" in advice["*.norm"]


def test_patterns_of_keep_base_that_match_nothing(llamas: Workshop) -> None:
    findings = llamas.lint(llamas.config("tsvm", parameters={"keep_base": "vlm, router, ruoter, lm_haed"}))
    assert all((f.rule, f.where) == ("dead-filter", "parameters.keep_base") for f in findings)
    advice = {finding.message.split("'")[1]: finding.advice for finding in findings}
    assert set(advice) == {"router", "ruoter", "lm_haed"}  # a llama has the norms of vlm
    assert advice["router"].startswith("it stands for *.gate.*") and "'router'" in advice["ruoter"]
    assert "'lm_head'" in advice["lm_haed"]


def test_excluded_tensors_cost_no_decomposition(llamas: Workshop) -> None:
    models = named_models(read_documents(_yaml(llamas.config("tsvm")))[0].config)
    names = []
    for exclude in ("", "model"):
        config = read_documents(_yaml(llamas.config("tsvm", parameters={"exclude": exclude})))[0].config
        plan, _ = planned_tensors(config, models)
        merge = PlannedMerge(config, plan)
        names.append([tensor.name for tensor in merge.plan if merge.options_of(tensor)])
    # All matrices, and then the head alone.
    assert (len(names[0]), names[1]) == (16, ["lm_head.weight"])


def test_required_option_that_its_filters_leave_out(llamas: Workshop) -> None:
    config = llamas.config(parameters={"weight": [{"filter": "mlp", "value": 1.0}]})
    finding = only(llamas.lint(config), "plan")
    assert finding.severity == "error" and "weight" in finding.message


def test_base_under_another_name_among_the_experts(llamas: Workshop) -> None:
    models = [{"model": f"{llamas.base}/"}, *llamas.config()["models"]]
    finding = only(llamas.lint(llamas.config(models=models)), "base-as-expert")
    assert finding.severity == "warning" and finding.where == "models[0]"


def test_base_listed_as_itself_is_no_expert(llamas: Workshop) -> None:
    models = [*llamas.config()["models"], {"model": str(llamas.base)}]
    findings = llamas.lint(llamas.config("tsvm", models=models))
    assert only(findings, "base-as-expert").severity == "note" and len(findings) == 1
    assert findings[0].where == "models[2]"
    # For linear the base is an input like any other.
    assert llamas.lint(llamas.config("linear", models=models)) == []


def test_expert_under_two_names(llamas: Workshop) -> None:
    link = llamas.folder / "link"
    link.symlink_to(llamas.experts[0])
    config = llamas.config(models=[{"model": str(link)}, {"model": str(llamas.experts[0])}])
    assert only(llamas.lint(config), "duplicate-model").severity == "warning"


def test_expert_with_the_weights_of_the_base(llamas: Workshop) -> None:
    shutil.copy(llamas.base / "model.safetensors", llamas.experts[0])
    finding = only(llamas.lint(llamas.config()), "expert-equals-base")
    assert finding.severity == "warning" and finding.model == str(llamas.experts[0])


def test_experts_with_the_same_weights(llamas: Workshop) -> None:
    shutil.copy(llamas.experts[1] / "model.safetensors", llamas.experts[0])
    assert only(llamas.lint(llamas.config()), "equal-experts").severity == "warning"


def test_other_meaning_of_the_same_shapes(llamas: Workshop) -> None:
    llamas.edit_json(llamas.experts[0] / "config.json", lambda content: content.update({"rms_norm_eps": 0.5}))
    assert "rms_norm_eps" in only(llamas.lint(llamas.config()), "model-settings").message


def test_mixed_dtypes(llamas: Workshop) -> None:
    llamas.edit_weights(llamas.experts[0], lambda t: t.update({n: x.bfloat16() for n, x in t.items()}))
    assert only(llamas.lint(llamas.config()), "mixed-dtypes").severity == "note"


def test_lora_reference(llamas: Workshop) -> None:
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    adapter = llamas.folder / "adapter"
    model = AutoModelForCausalLM.from_pretrained(llamas.base)
    get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj"])).save_pretrained(adapter)
    config = llamas.config(models=[{"model": f"{llamas.base}+{adapter}"}, {"model": str(llamas.experts[0])}])
    findings = llamas.lint(config)
    assert only(findings, "lora-cache").severity == "note" and "--lora-merge-cache" in findings[0].advice
    assert len(findings) == 1
    wrong = llamas.config(models=[{"model": str(adapter)}, {"model": f"{llamas.base}+{llamas.experts[0]}"}])
    findings = llamas.lint(wrong)
    assert str(adapter) in only(findings, "adapter-as-model").advice
    assert "no LoRA adapter" in only(findings, "missing-adapter").message


def test_deep_finds_weights_that_are_not_finite(llamas: Workshop) -> None:
    name = "model.layers.1.mlp.down_proj.weight"

    def poison(tensors: dict[str, Any]) -> None:
        tensors[name][0, :3] = torch.tensor([float("nan"), float("inf"), float("nan")])

    llamas.edit_weights(llamas.experts[0], poison)
    assert llamas.lint(llamas.config()) == []
    finding = only(llamas.lint(llamas.config(), deep=True), "non-finite")
    assert (finding.severity, finding.model, finding.tensor) == ("error", str(llamas.experts[0]), name)
    assert "2 NaN and 1 infinite" in finding.message


def test_deep_finds_what_no_expert_changes(llamas: Workshop) -> None:
    name = "model.norm.weight"
    original = load_file(llamas.base / "model.safetensors")[name]
    for expert in llamas.experts:
        llamas.edit_weights(expert, lambda tensors: tensors.update({name: original.clone()}))
    finding = only(llamas.lint(llamas.config(), deep=True), "unchanged-tensors")
    assert finding.severity == "note" and finding.tensor == name


def test_deep_finds_an_expert_resaved_from_the_base(llamas: Workshop) -> None:
    tensors = load_file(llamas.base / "model.safetensors")
    # Other metadata make another file of the same weights, so its samples differ.
    save_file(tensors, llamas.experts[0] / "model.safetensors", metadata={"format": "pt", "note": "saved again"})
    assert llamas.lint(llamas.config()) == []
    assert only(llamas.lint(llamas.config(), deep=True), "expert-equals-base").severity == "warning"


def test_pytorch_files(llamas: Workshop) -> None:
    files = [str(path / "model.safetensors") for path in [llamas.base, *llamas.experts]]
    config = llamas.config(base_model=files[0], models=[{"model": file} for file in files[1:]])
    assert llamas.lint(config) == []
    llamas.edit_weights(llamas.experts[0], lambda tensors: tensors.pop("model.norm.weight"))
    assert only(llamas.lint(config), "missing-tensor").tensor == "model.norm.weight"


def test_pickled_weights(llamas: Workshop) -> None:
    for path in [llamas.base, *llamas.experts]:
        torch.save(load_file(path / "model.safetensors"), path / "pytorch_model.bin")
        (path / "model.safetensors").unlink()
    assert llamas.lint(llamas.config(), deep=True) == []
    (llamas.experts[0] / "pytorch_model.bin").write_bytes(b"PK nothing")
    assert "torch cannot read it" in only(llamas.lint(llamas.config()), "weight-files").message


def test_files_and_folders_mixed_up(llamas: Workshop) -> None:
    file = str(llamas.experts[0] / "model.safetensors")
    config = llamas.config(models=[{"model": file}, {"model": str(llamas.experts[1])}])
    assert only(llamas.lint(config), "file-as-folder").model == file
    config = llamas.config(models=[{"model": file}])
    assert only(llamas.lint(config), "folder-as-file").model == str(llamas.base)


def test_merges_that_use_each_other(llamas: Workshop) -> None:
    first = {"name": "first", **llamas.config()}
    second = llamas.config(models=[{"model": "first"}, {"model": str(llamas.experts[0])}], parameters={"wieght": 1})
    path = llamas.write("---\n".join(_yaml(document) for document in (first, second)))
    findings = lint(path)
    assert {finding.rule for finding in findings} == {"unknown-option", "missing-option"}
    again = lint(llamas.write("---\n".join(_yaml(document) for document in (first, first))))
    assert only(again, "merge-name").severity == "error"


def _yaml(config: dict[str, Any]) -> str:
    import yaml

    return yaml.safe_dump(config, sort_keys=False)
