"""What can be wrong with the models or the options: found before the merge, named, and without a half-written model."""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path

import pytest
import torch
from fusion_bench.modelpool import BaseModelPool, CausalLMPool
from hydra.errors import CompactHydraException
from safetensors.torch import load_file, save_file
from torch import nn

from fusion_bench_ext.algorithms import RTSVM, TSVM, MergeKitAlgorithm
from mergekit_3h.errors import ModelError, OptionError, TensorError, ThreeHError

from .conftest import EXPERTS, pool_of

NAME = "model.layers.1.mlp.down_proj.weight"


def ties(**kwargs):
    return MergeKitAlgorithm("ties", {"weight": 0.5}, **kwargs)


@pytest.fixture
def altered(llama, tmp_path: Path):
    """A function that changes the stored tensors of a copy of the second expert, and gives the pool with it."""

    def make(change, *, lazy: bool) -> CausalLMPool:
        copy = tmp_path / "altered"
        shutil.copytree(llama.experts[1], copy)
        tensors = load_file(copy / "model.safetensors")
        change(tensors)
        save_file(tensors, copy / "model.safetensors", metadata={"format": "pt"})
        models = {"_pretrained_": str(llama.base), "alpha": str(llama.experts[0]), "beta": str(copy)}
        return CausalLMPool(models, tokenizer=str(llama.base), enable_lazy_loading=lazy)

    return make


@pytest.mark.parametrize("lazy", [True, False])
@pytest.mark.parametrize("algorithm", [TSVM, RTSVM, ties])
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_non_finite_weight(value, algorithm, lazy, altered, tmp_path: Path):
    pool = altered(lambda tensors: tensors[NAME].view(-1)[5].fill_(value), lazy=lazy)
    with pytest.raises(TensorError, match=rf"tensor '{NAME}' of model 'beta' holds NaN or infinity"):
        algorithm(model_save_path=str(tmp_path / "merged")).run(pool)
    assert not (tmp_path / "merged").exists()


@pytest.mark.parametrize("lazy", [True, False])
@pytest.mark.parametrize("algorithm", [TSVM, ties])
def test_missing_tensor(algorithm, lazy, altered):
    pool = altered(lambda tensors: tensors.pop(NAME), lazy=lazy)
    with pytest.raises(TensorError, match=rf"checkpoint of model 'beta' lacks the tensor '{NAME}'"):
        algorithm().run(pool)


@pytest.mark.parametrize("lazy", [True, False])
def test_tensor_of_another_shape_than_its_config_says(lazy, altered):
    pool = altered(lambda tensors: tensors.update({NAME: torch.zeros(7, 5)}), lazy=lazy)
    message = rf"'{NAME}' of model 'beta' is \[7, 5\] in .* but \[32, 48\] by .*config\.json"
    with pytest.raises(TensorError, match=message):
        TSVM().run(pool)


@pytest.mark.parametrize("lazy", [True, False])
@pytest.mark.parametrize("algorithm", [TSVM, ties])
def test_vocabulary_that_only_the_weights_know_of(algorithm, lazy, altered, tmp_path: Path):
    resized = {name: torch.zeros(400, 32) for name in ("model.embed_tokens.weight", "lm_head.weight")}
    pool = altered(lambda tensors: tensors.update(resized), lazy=lazy)
    with pytest.raises(
        TensorError, match=r"tensor '\S+weight' \(and 1 more\) of model 'beta' is \[400, 32\] .*\[384, 32\]"
    ) as caught:
        algorithm(model_save_path=str(tmp_path / "merged")).run(pool)
    assert "vocab_size" in str(caught.value), "nothing says what to do"
    assert "ignore_mismatched_sizes" not in str(caught.value), "transformers' words"
    assert not (tmp_path / "merged").exists()


@pytest.mark.parametrize("lazy", [True, False])
def test_file_that_was_cut_off(lazy, altered):
    pool = altered(lambda tensors: None, lazy=lazy)
    file = Path(pool.get_model_path("beta")) / "model.safetensors"
    file.write_bytes(file.read_bytes()[:5000])
    with pytest.raises(ModelError, match=r"model 'beta' of the pool cannot be loaded: \S+/model\S+: truncated"):
        TSVM().run(pool)


@pytest.mark.parametrize("lazy", [True, False])
@pytest.mark.parametrize("algorithm", [TSVM, ties])
def test_models_of_another_shape(algorithm, lazy, llama, family):
    wider = family("llama", intermediate_size=64)
    models = {"_pretrained_": str(llama.base), "alpha": str(llama.experts[0]), "wide": str(wider.experts[0])}
    pool = CausalLMPool(models, tokenizer=None, enable_lazy_loading=lazy)
    with pytest.raises(TensorError, match=r"mlp\.\w+_proj\.weight' is .*64.* in model 'wide' but .*48.* in model"):
        algorithm().run(pool)


@pytest.mark.parametrize("lazy", [True, False])
def test_models_with_more_layers(lazy, llama, family):
    deeper = family("llama", num_hidden_layers=3)
    models = {"_pretrained_": str(llama.base), "alpha": str(llama.experts[0]), "deep": str(deeper.experts[0])}
    with pytest.raises(TensorError, match=r"model 'deep' has the tensor 'model\.layers\.2\..* that model '_pretrained"):
        TSVM().run(CausalLMPool(models, tokenizer=None, enable_lazy_loading=lazy))
    models = {"_pretrained_": str(deeper.base), "deep": str(deeper.experts[0]), "flat": str(llama.experts[0])}
    with pytest.raises(TensorError, match=r"model 'flat' lacks the tensor 'model\.layers\.2\."):
        TSVM().run(CausalLMPool(models, tokenizer=None, enable_lazy_loading=lazy))


@pytest.mark.parametrize("lazy", [True, False])
def test_models_of_another_architecture(lazy, llama, family):
    other = family("mistral")
    models = {"_pretrained_": str(llama.base), "alpha": str(llama.experts[0]), "wind": str(other.experts[0])}
    with pytest.raises(ModelError, match="model 'wind' is a MistralForCausalLM but model '_pretrained_' is a Llama"):
        TSVM().run(CausalLMPool(models, tokenizer=None, enable_lazy_loading=lazy))


@pytest.mark.parametrize("lazy", [True, False])
def test_experts_that_untie_what_the_base_ties(lazy, family):
    tied, untied = family("llama-tied"), family("llama")
    models = {"_pretrained_": str(tied.base), "alpha": str(tied.experts[0]), "free": str(untied.experts[0])}
    with pytest.raises(ThreeHError, match=r"model 'free' has .*which model '_pretrained_' ties into one"):
        TSVM().run(CausalLMPool(models, tokenizer=None, enable_lazy_loading=lazy))


@pytest.mark.parametrize("lazy", [True, False])
def test_a_tied_expert_of_an_untied_base_counts_with_both_names(lazy, family):
    tied, untied = family("llama-tied"), family("llama")
    models = {"_pretrained_": str(untied.base), "alpha": str(untied.experts[0]), "tied": str(tied.experts[0])}
    merged = TSVM().run(CausalLMPool(models, tokenizer=None, enable_lazy_loading=lazy))
    assert merged.lm_head.weight is not merged.model.embed_tokens.weight
    assert not torch.equal(merged.lm_head.weight, merged.model.embed_tokens.weight)


def test_no_base(llama):
    pool = CausalLMPool({"alpha": str(llama.experts[0]), "beta": str(llama.experts[1])}, tokenizer=None)
    with pytest.raises(ModelError, match=r"tsvm needs the model that the experts were trained from.*'_pretrained_'"):
        TSVM().run(pool)
    with pytest.raises(ModelError, match=r"ties needs a base.*'_pretrained_'"):
        ties().run(pool)


def test_no_expert(llama):
    pool = CausalLMPool({"_pretrained_": str(llama.base)}, tokenizer=None)
    with pytest.raises(ModelError, match="no model to merge"):
        TSVM().run(pool)


@pytest.mark.parametrize("lazy", [True, False])
def test_model_that_is_not_there(lazy, llama, tmp_path: Path):
    models = {"_pretrained_": str(llama.base), "ghost": str(tmp_path / "nowhere")}
    with pytest.raises(ModelError, match=r"model 'ghost' of the pool cannot be loaded: there is no folder .*nowhere"):
        TSVM().run(CausalLMPool(models, tokenizer=None, enable_lazy_loading=lazy))


@pytest.mark.parametrize(
    ("algorithm", "given", "message"),
    [
        (RTSVM, {"gamma": 1.5}, r"option 'gamma': got 1\.5"),
        (RTSVM, {"gama": 0.5}, "rtsvm has no option 'gama'; did you mean 'gamma'"),
        (TSVM, {"gamma": 0.5}, "tsvm has no option 'gamma'"),
        (TSVM, {"model_save_pth": "x"}, "did you mean 'model_save_path'"),
        (TSVM, {"lambda": "much"}, "option 'lambda': got 'much'"),
        (TSVM, {"lambda": True}, "option 'lambda': got True, expected a number"),
        (TSVM, {"lambda": None}, "option 'lambda': got None"),
        (TSVM, {"weight": [1.0, "x"]}, "option 'weight': got 'x'"),
        (TSVM, {"weight": {"a": float("nan")}}, "option 'weight': got nan"),
        (TSVM, {"noise_floor": "no"}, "option 'noise_floor': got 'no'.*'auto' or 'off'"),
    ],
)
def test_impossible_options_are_refused_at_once(algorithm, given, message):
    with pytest.raises(OptionError, match=message) as caught:
        algorithm(**given)
    assert isinstance(caught.value, CompactHydraException), "Hydra would print a traceback"


@pytest.mark.parametrize(
    ("weight", "message"),
    [
        ([1.0, 2.0], "got 2 numbers for 3 models"),
        ({"alhpa": 1.0}, "no model 'alhpa'; did you mean 'alpha'"),
        ({"_pretrained_": 1.0}, "no model '_pretrained_'"),
    ],
)
def test_weights_that_do_not_fit_the_pool_are_refused_before_loading(weight, message, tmp_path: Path):
    nowhere = {name: str(tmp_path / "absent") for name in ("_pretrained_", *EXPERTS)}
    with pytest.raises(OptionError, match=message):
        TSVM(weight=weight).run(CausalLMPool(nowhere, tokenizer=None))


def test_blocks_of_another_number_of_experts_are_refused_before_loading(tmp_path: Path):
    nowhere = {name: str(tmp_path / "absent") for name in ("_pretrained_", *EXPERTS)}
    with pytest.raises(OptionError, match="got '1 0 / 1 0', which is for 2 experts; there are 3"):
        TSVM(block_weights="1 0 / 1 0").run(CausalLMPool(nowhere, tokenizer=None))


@pytest.fixture
def nowhere() -> CausalLMPool:
    """A pool whose models cannot be loaded: any error about something else came before."""
    return CausalLMPool({"_pretrained_": "/nowhere/base", "alpha": "/nowhere/alpha"}, tokenizer=None)


@pytest.mark.parametrize(("path", "message"), [("file", "is a file"), ("file/below", "not a folder to write to")])
def test_save_path_is_checked_before_loading(path, message, nowhere, tmp_path: Path):
    (tmp_path / "file").write_text("precious")
    with pytest.raises(OptionError, match=f"model_save_path: .*{message}"):
        TSVM(model_save_path=str(tmp_path / path)).run(nowhere)
    assert (tmp_path / "file").read_text() == "precious"


@pytest.mark.parametrize("path", ["", "merged", "deeper/merged"])
def test_folder_without_permission_is_found_before_loading(path, nowhere, tmp_path: Path):
    folder = tmp_path / "read-only"
    folder.mkdir(mode=0o500)
    if os.access(folder, os.W_OK):
        pytest.skip("this user may write anywhere")
    with pytest.raises(OptionError, match=r"read-only is not a folder to write to \(permission denied\)"):
        TSVM(model_save_path=str(folder / path)).run(nowhere)


@pytest.mark.skipif(not Path("/proc/self").is_dir(), reason="needs a file system that nobody can write to")
@pytest.mark.parametrize("path", ["/proc", "/proc/merged", "/proc/deeper/merged"])
def test_file_system_that_not_even_root_can_write_to(path, nowhere):
    with pytest.raises(OptionError, match=r"model_save_path: .* because /proc is not a folder to write to"):
        TSVM(model_save_path=path).run(nowhere)


def test_a_pool_that_saves_a_file_is_given_no_folder(tmp_path: Path):
    pool = BaseModelPool({name: nn.Linear(8, 8) for name in ("_pretrained_", "a")})
    with pytest.raises(OptionError, match="is a folder, expected a file"):
        TSVM(model_save_path=str(tmp_path)).run(pool)
    (tmp_path / "merged.pt").write_bytes(b"an earlier one")
    TSVM(model_save_path=str(tmp_path / "merged.pt")).run(pool)
    assert torch.load(tmp_path / "merged.pt").keys() == {"weight", "bias"}


def test_checking_the_save_path_leaves_nothing(nowhere, tmp_path: Path):
    for path in (tmp_path, tmp_path / "merged"):
        with pytest.raises(ModelError, match="cannot be loaded"):
            TSVM(model_save_path=str(path)).run(nowhere)
    assert list(tmp_path.iterdir()) == []


def test_tokenizer_is_loaded_before_the_merge(tmp_path: Path):
    models = {"_pretrained_": "/nowhere/base", "alpha": "/nowhere/alpha"}
    pool = CausalLMPool(models, tokenizer=str(tmp_path / "no tokenizer here"))
    with pytest.raises(ModelError, match=r"tokenizer of the pool cannot be loaded.*no tokenizer here"):
        TSVM(model_save_path=str(tmp_path / "merged")).run(pool)


def test_integers_that_differ():
    models = {name: nn.Module() for name in ("_pretrained_", "a", "b")}
    for value, model in enumerate(models.values()):
        model.register_buffer("table", torch.tensor([value // 2, 3]))
    with pytest.raises(TensorError, match=r"tensor 'table' holds torch.int64 and differs between .*'a' and 'b'"):
        TSVM().run(BaseModelPool(models))


def test_quantised_weights():
    models = {name: nn.Linear(8, 8) for name in ("_pretrained_", "a", "small")}
    models["small"].weight = nn.Parameter(models["small"].weight.detach().to(torch.float8_e4m3fn), requires_grad=False)
    with pytest.raises(TensorError, match="tensor 'weight' of model 'small' is quantised"):
        TSVM().run(BaseModelPool(models))


@pytest.mark.parametrize("value", [0, -1.5, "much", True, float("inf"), float("nan"), [1]])
def test_memory_that_is_no_size(value, llama):
    message = re.escape(f"option 'memory_gb': got {value!r}")
    with pytest.raises(OptionError, match=message):
        TSVM(memory_gb=value)
    later = TSVM()
    later.memory_gb = value
    with pytest.raises(OptionError, match=message):
        later.run(pool_of(llama, lazy=True))
