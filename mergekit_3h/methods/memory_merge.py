"""A merge that stays in memory: mergekit's own planner and executor, without the last step that writes files."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from mergekit_3h.checkpoints.opening import load_model
from mergekit_3h.errors import ModelError, OptionError, ThreeHError
from mergekit_3h.suggestions import did_you_mean

if TYPE_CHECKING:
    from mergekit_3h.methods.adapter_experts import LoraRoute


@dataclass(frozen=True)
class Merger:
    """Merges a config of mergekit. Plain values only: it travels to the workers of a cluster."""

    device: str = "cpu"
    trust_remote_code: bool = False
    lora_merge_cache: str | None = None
    lora: LoraRoute = "auto"
    """How experts that are adapters on the base are merged by a spectral method."""

    def require_known(self, method: str) -> None:
        """Raise, with a suggestion, unless mergekit has such a merge method."""
        from mergekit import merge_methods

        known = sorted(one.spec.name for one in merge_methods.registered_methods())
        if method not in known:
            raise OptionError(f"mergekit has no merge method {method!r}; {did_you_mean(method, known)}")

    def tensors(self, config: Mapping[str, Any], seed: int) -> dict[str, Tensor]:
        """Every tensor of the merged model under mergekit's names, on the CPU.

        The tasks are those of ``mergekit-yaml --random-seed SEED``, in the same order.
        """
        import torch
        from mergekit.graph import Executor
        from mergekit.io.tasks import LoaderCache
        from transformers import set_seed

        from mergekit_3h.lint.host_plan import save_tasks
        from mergekit_3h.methods.adapter_experts import adapters_on_their_base

        options = self._options(seed)
        with explained("the merge"):
            parsed = parsed_config(config)
            set_seed(seed)
            LoaderCache().setup(options=options)
            with adapters_on_their_base(parsed, self.lora, options):
                saved = save_tasks(parsed, options)  # which are not executed themselves: they would write
                wanted: Any = [task.tensor_task for task in saved]
                executor = Executor(wanted, torch.device(self.device), torch.device("cpu"))
                made = {task: value for task, value in executor.run(quiet=True) if isinstance(value, Tensor)}
        return {
            task.tensor_name: _in_dtype(made[task.tensor_task], task.dtype)
            for task in saved
            if task.tensor_task in made
        }

    def tensors_by_files(self, config: Mapping[str, Any], seed: int) -> dict[str, Tensor]:
        """The same by way of a folder that is removed again, as transformers loads it: for models whose tensors
        transformers names or fuses otherwise than their checkpoints do."""
        with tempfile.TemporaryDirectory(prefix="mergekit-3h-") as name:
            self.write(config, Path(name) / "merged", seed)
            with explained("the merged model"):
                module = load_model(Path(name) / "merged", "auto", "cpu", self.trust_remote_code)
            return {key: value.clone() for key, value in module.state_dict().items()}

    def write(self, config: Mapping[str, Any], folder: Path, seed: int | None, source: str | None = None) -> None:
        """What ``mergekit-yaml`` does: the merged checkpoint in a folder, with tokenizer and model card."""
        from mergekit.merge import run_merge

        from mergekit_3h.methods.adapter_experts import adapters_on_their_base

        parsed, options = parsed_config(config), self._options(seed)
        with explained("the merge"), adapters_on_their_base(parsed, self.lora, options):
            run_merge(parsed, str(folder), options=options, config_source=source)

    def _options(self, seed: int | None) -> Any:
        from mergekit.options import MergeOptions

        return MergeOptions(
            device=self.device,
            trust_remote_code=self.trust_remote_code,
            lora_merge_cache=self.lora_merge_cache,
            random_seed=seed,
            quiet=True,
        )


def _in_dtype(tensor: Tensor, name: str | None) -> Tensor:
    """The type that a config's ``dtype`` or ``out_dtype`` has the checkpoint written in."""
    from mergekit.common import dtype_from_name

    return tensor if name is None else tensor.to(dtype_from_name(name))


def parsed_config(config: Mapping[str, Any]) -> Any:
    from mergekit.config import MergeConfiguration
    from pydantic import ValidationError

    try:
        return MergeConfiguration.model_validate(dict(config))
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = ".".join(map(str, first["loc"])) or "the config"
        raise OptionError(f"mergekit does not accept {place}: {first['msg']}") from None


class explained:  # noqa: N801 - reads as a sentence: with explained(...)
    """mergekit raises what it likes; here it becomes one error of this package."""

    def __init__(self, what: str) -> None:
        self._what = what

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: Any) -> None:
        if isinstance(error, Exception) and not isinstance(error, ThreeHError):
            raise ModelError(f"{self._what} failed: {type(error).__name__}: {error}") from error
