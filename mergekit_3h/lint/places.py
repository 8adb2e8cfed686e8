"""Every place of a config where parameters may stand, in one list, for the three shapes a config can have."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

Kind = Literal["global", "module", "slice", "input"]


@dataclass(frozen=True)
class Place:
    """One ``parameters:`` block; ``model`` and ``is_base`` say whose it is, if it belongs to one input."""

    where: str
    kind: Kind
    parameters: Mapping[str, Any]
    model: str | None = None
    is_base: bool = False


@dataclass(frozen=True)
class InputGroup:
    """Inputs merged with each other, with the blocks that apply to all of them, the closest first."""

    where: str
    inputs: tuple[Place, ...]
    enclosing: tuple[Place, ...]
    base: str | None


def parameter_groups(config: Any) -> list[InputGroup]:
    """Groups of a ``MergeConfiguration`` (before or after planning) or a ``RawPyTorchMergeConfig``."""
    outer = (Place("parameters", "global", config.parameters or {}),)
    base = _text(config.base_model)
    groups = list(_definition_groups(config, "", outer, base))
    for name, module in (getattr(config, "modules", None) or {}).items():
        where = f"modules.{name}"
        own = (Place(f"{where}.parameters", "module", module.parameters or {}), *outer)
        groups += _definition_groups(module, f"{where}.", own, base)
    return groups


def parameter_places(config: Any) -> list[Place]:
    """Every parameters block once, the global one first."""
    seen: dict[str, Place] = {}
    for group in parameter_groups(config):
        for place in (*reversed(group.enclosing), *group.inputs):
            seen.setdefault(place.where, place)
    return list(seen.values())


def _definition_groups(owner: Any, prefix: str, enclosing: tuple[Place, ...], base: str | None) -> Iterator[InputGroup]:
    if owner.models:
        yield InputGroup(f"{prefix}models", _inputs(owner.models, f"{prefix}models", base), enclosing, base)
    for index, part in enumerate(getattr(owner, "slices", None) or []):
        where = f"{prefix}slices[{index}]"
        slice_base = _text(part.base_model) or base
        own = (Place(f"{where}.parameters", "slice", part.parameters or {}), *enclosing)
        yield InputGroup(where, _inputs(part.sources, f"{where}.sources", slice_base), own, slice_base)


def _inputs(definitions: Any, where: str, base: str | None) -> tuple[Place, ...]:
    return tuple(
        Place(
            f"{where}[{index}].parameters",
            "input",
            definition.parameters or {},
            model=_text(definition.model),
            is_base=_text(definition.model) == base,
        )
        for index, definition in enumerate(definitions)
    )


def _text(model: Any) -> str | None:
    return None if model is None else str(model)
