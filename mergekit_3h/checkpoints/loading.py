"""What transformers makes of a checkpoint: the parameter of the model that each stored tensor becomes, or a part of it.

Names on disk are not always those of the module: transformers renames some on loading (``embed_out`` to ``lm_head``),
fuses others (the experts of a layer into one tensor), and takes no notice of what the module has no place for.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from functools import cache, partial
from pathlib import Path
from typing import Any

from torch import Tensor, nn

Reader = Callable[[str], Tensor]


def empty_module(folder: Path) -> nn.Module | None:
    """The model that ``config.json`` describes, without memory for weights; None if transformers cannot build it."""
    import torch
    import transformers
    from transformers.initialization import no_init_weights

    try:
        config: Any = transformers.AutoConfig.from_pretrained(str(folder), local_files_only=True)
        model_class: Any = getattr(transformers, config.architectures[0])
        with torch.device("meta"), no_init_weights():
            module = model_class(config)
        module.tie_weights()  # which no_init_weights leaves out
    except Exception:  # foreign code, a config of another version: what the names mean is not known then
        return None
    return module


@dataclass(frozen=True)
class ParameterRecipe:
    """How transformers makes one parameter, or the several that one conversion yields."""

    first: str
    converter: Any = None
    stored: list[tuple[str, str]] = field(default_factory=list[tuple[str, str]])
    """Names on disk, each with the pattern of the converter that it matches."""

    def make(self, parameter: str, read: Reader, module: nn.Module) -> Tensor:
        """The parameter, from the stored tensors that ``read`` gives by name; KeyError if it does not come of them."""
        if self.converter is None:
            return read(self.stored[0][0])
        converter = deepcopy(self.converter)
        for name, pattern in self.stored:
            converter.add_tensor(self.first, name, pattern, partial(read, name))
        made = converter.convert(self.first, model=module, config=getattr(module, "config", None))[parameter]
        return made[0] if isinstance(made, list) else made

    def outline(self, parameter: str, stored: Mapping[str, tuple[Sequence[int], Any]], module: nn.Module) -> Any:
        """The parameter on the meta device, by the shapes and dtypes of what is stored; None if some of it lacks."""
        import torch

        def empty(name: str) -> Tensor:
            shape, dtype = stored[name]
            return torch.empty(tuple(shape), dtype=dtype, device="meta")

        try:
            return self.make(parameter, empty, module)
        except Exception:  # whatever the conversion says of what it was given
            return None


class LoadedNames:
    """The names of a module of transformers as its ``from_pretrained`` finds them in a checkpoint."""

    def __init__(self, module: nn.Module) -> None:
        self._module = module
        self._state = {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}
        self._prefix = getattr(module, "base_model_prefix", None)
        self._renamings, self._converters = _transforms(module)
        self._of_pattern = {pattern: each for each in self._converters for pattern in each.source_patterns}

    def parameters_of(self, stored: str) -> tuple[str, ...]:
        """The parameters that the tensor goes into; none if the module has no place for it."""
        first, pattern = self._placed(stored)
        return self._all_targets(first, pattern) if first in self._state else ()

    def shape(self, parameter: str) -> tuple[int, ...]:
        return self._state[parameter]

    def recipes(self, stored: Iterable[str]) -> dict[str, ParameterRecipe]:
        """How each parameter is made that these tensors of a checkpoint yield."""
        from transformers.core_model_loading import dot_natural_key

        by_first: dict[str, ParameterRecipe] = {}
        made: dict[str, ParameterRecipe] = {}
        for name in sorted(stored, key=dot_natural_key):
            first, pattern = self._placed(name)
            if first not in self._state:
                continue
            recipe = by_first.setdefault(first, ParameterRecipe(first, self._of_pattern.get(pattern or "")))
            recipe.stored.append((name, pattern or name))
            made.update(dict.fromkeys(self._all_targets(first, pattern), recipe))
        return made

    def _placed(self, stored: str) -> tuple[str, str | None]:
        from transformers.core_model_loading import rename_source_key

        place = partial(rename_source_key, base_model_prefix=self._prefix, meta_state_dict=self._state)
        name, pattern = place(stored, self._renamings, self._converters)
        # A name that the module has as it stands was meant as it stands.
        return place(stored, [], []) if name not in self._state and stored in self._state else (name, pattern)

    def _all_targets(self, first: str, pattern: str | None) -> tuple[str, ...]:
        """One conversion may yield several parameters, as a fused projection is cut into three."""
        if pattern is None:
            return (first,)
        head, *rest = self._of_pattern[pattern].target_patterns
        return tuple(name for name in (first, *(first.replace(head, other) for other in rest)) if name in self._state)


def _transforms(module: nn.Module) -> tuple[list[Any], list[Any]]:
    from transformers import PreTrainedModel
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import WeightConverter, WeightRenaming

    if not isinstance(module, PreTrainedModel):
        return [], []
    transforms = get_model_conversion_mapping(module)
    renamings = [each for each in transforms if isinstance(each, WeightRenaming)]
    return renamings, [each for each in transforms if isinstance(each, WeightConverter)]


def tied_names(module: nn.Module) -> dict[str, tuple[str, ...]]:
    """For every name of a shared parameter the other names it has."""
    names_of: dict[int, list[str]] = {}
    for name, parameter in module.named_parameters(remove_duplicate=False):
        names_of.setdefault(id(parameter), []).append(name)
    return {
        name: tuple(other for other in names if other != name)
        for names in names_of.values()
        if len(names) > 1
        for name in names
    }


@cache
def layer_number(name: str) -> int | None:
    """The first number in a tensor's name."""
    found = re.search(r"\.(\d+)\.", name)
    return int(found[1]) if found else None
