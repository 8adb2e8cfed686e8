"""How ``mergekit-3h merge`` merges: mergekit's own options under its names, and those of a cluster."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from mergekit_3h.cluster.options import ClusterOptions

_ON_RAY = "unset"
"""The value of --ray without an address: the cluster is found as the option's description says."""
_OF_CLUSTERS = ("workers", "gpus_per_worker", "cpus_per_worker", "memory_per_worker", "threads", "attempts")
_TYPES: dict[str, Any] = {
    "workers": click.IntRange(1),
    "gpus_per_worker": float,
    "cpus_per_worker": float,
    "memory_per_worker": float,
    "threads": click.IntRange(1),
    "attempts": click.IntRange(1),
}


class _Address(click.ParamType):
    """Click takes the word after --ray for its value, which may have been meant as CONFIG."""

    name = "address"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if Path(value).suffix in (".yml", ".yaml"):
            self.fail(f"{value} is no address of a cluster; write --ray behind CONFIG and OUT", param, ctx)
        return value


def _switch(name: str, default: bool, text: str) -> Callable[..., Any]:
    return click.option(f"--{name}/--no-{name}", default=default, help=text)


_MERGEKIT = (
    click.option("--cuda/--no-cuda", default=False, help="Merge on the GPU: the same as --merge-device cuda."),
    click.option("--merge-device", help="Where is merged: cpu, cuda, cuda:1, auto.  [default: cpu]"),
    click.option("--random-seed", "--seed", "random_seed", type=int, help="Of methods that draw random numbers."),
    click.option("--out-shard-size", default="5B", show_default=True, help="Bytes of a shard at most: 500M, 5B."),
    _switch("safe-serialization", True, "Shards as safetensors; else as PyTorch's own files."),
    _switch("clone-tensors", False, "Copy tensors before they are kept for a shard."),
    _switch("copy-tokenizer", True, "Copy the base's tokenizer where none is built."),
    _switch("write-model-card", True, "README.md, and the config."),
    click.option("-j", "--num-threads", type=click.IntRange(1), help="Threads of torch."),
    _switch("low-cpu-memory", False, "Keep what is computed on the GPU until it is written."),
    _switch("read-to-gpu", False, "Read models to the GPU at once."),
    _switch("lazy-unpickle", False, "Read PyTorch's own files a tensor at a time."),
    _switch("async-write", False, "Write shards while the next one is merged; takes the memory of both."),
    click.option("--write-threads", type=click.IntRange(1), default=1, show_default=True, help="Of --async-write."),
    click.option("--lora-merge-cache", help="Folder for experts that are adapters, merged into their bases."),
    click.option(
        "--lora",
        type=click.Choice(["auto", "core", "dense", "merged"]),
        default="auto",
        show_default=True,
        help="Experts that are adapters on the base, by a spectral method: core, dense: as the products they are. "
        "merged: each into its base first, as mergekit-yaml does. auto: core where it can be.",
    ),
    click.option("--lora-merge-dtype", help="In which type adapters are merged."),
    click.option("--transformers-cache", help="Folder for models of the hub."),
    _switch("allow-crimes", False, "Let models of several architectures be merged."),
    _switch("unsafe-truncate-embeddings", False, "Cut vocabularies to the smallest one; tokens must agree."),
    click.option("--multi-gpu", is_flag=True, hidden=True),  # refused, with what to take instead
)
_NAMES = (
    *("cuda", "random_seed", "safe_serialization", "clone_tensors", "copy_tokenizer", "write_model_card"),
    *("num_threads", "low_cpu_memory", "read_to_gpu", "lazy_unpickle", "async_write", "write_threads"),
    *("lora_merge_cache", "lora_merge_dtype", "transformers_cache", "allow_crimes", "unsafe_truncate_embeddings"),
    *("multi_gpu", "trust_remote_code"),
)


def merge_options(function: Callable[..., Any]) -> Callable[..., Any]:
    cluster = [
        click.option(
            f"--ray-{name.replace('_', '-')}", type=_TYPES[name], help=ClusterOptions.model_fields[name].description
        )
        for name in _OF_CLUSTERS
    ]
    ray = click.option(
        "--ray",
        is_flag=False,
        flag_value=_ON_RAY,
        type=_Address(),
        metavar="[ADDRESS]",
        help="Merge on the workers of a Ray cluster: of this address; without one, of the one that RAY_ADDRESS names, "
        "else on this machine alone.",
    )
    for decorate in reversed((*_MERGEKIT, ray, *cluster)):
        function = decorate(function)
    return function


def mergekit_options(given: dict[str, Any]) -> Any:
    """mergekit's own object. Its bars are left out: the merge has one itself."""
    from mergekit_3h.methods.merging.options import mergekit_options as made

    values = {name: given[name] for name in _NAMES}
    values |= {"device": given["merge_device"], "out_shard_size": given["out_shard_size"]}
    return made(values, is_here=given["ray"] is None)


def cluster_options(given: dict[str, Any]) -> ClusterOptions | None:
    """None where --ray is not given."""
    from mergekit_3h.cluster.options import parse_cluster_options
    from mergekit_3h.errors import OptionError

    chosen = {name: given[f"ray_{name}"] for name in _OF_CLUSTERS if given[f"ray_{name}"] is not None}
    if given["ray"] is None:
        if chosen:
            raise OptionError(f"--ray-{next(iter(chosen)).replace('_', '-')} is of a merge on a cluster: add --ray")
        return None
    address = {} if given["ray"] == _ON_RAY else {"address": given["ray"]}
    return parse_cluster_options({**chosen, **address})
