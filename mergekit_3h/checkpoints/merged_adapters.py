"""The one adapter that a merge of adapters gives, from the merged update of every parameter."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from mergekit_3h.checkpoints.adapted_base import PlacedAdapter
from mergekit_3h.checkpoints.adapter_files import MergedModule, write_adapter
from mergekit_3h.errors import OptionError
from mergekit_3h.kernels.core_space import Truncation, lost_share

VISIBLE = 5e-4
"""Of a percentage with one digit."""


@dataclass(frozen=True)
class MergedAdapter:
    """What was written."""

    modules: int
    ranks: list[int]
    """The smallest and the largest rank of a module."""
    lost: float
    """How far the adapter is from the merged update, relative to that: 0 but where its rank was limited."""

    def __str__(self) -> str:
        ranks = " to ".join(str(rank) for rank in sorted(set(self.ranks)))
        cut = f"; cutting to it moved the merged update by {self.lost:.1%}" if self.lost > VISIBLE else ""
        return f"an adapter of rank {ranks} on {self.modules} modules{cut}"


def write_merged_updates(
    folder: Path, updates: Mapping[str, Truncation], adapters: Sequence[PlacedAdapter], named: tuple[str, str | None]
) -> MergedAdapter:
    """One adapter with the merged updates of these adapters, by parameter; those that are not there are nothing.

    ``named`` is the base's path or name on the hub, and its revision.
    """
    places = dict(place for adapter in adapters for place in adapter.places.items())
    modules = [
        MergedModule(*places[parameter], updates[parameter].kept) for parameter in sorted(places.keys() & updates)
    ]
    write_adapter(folder, modules, adapters[0].base, named, [adapter.adapter for adapter in adapters])
    ranks = [module.update.rank for module in modules if module.update.rank]
    return MergedAdapter(len(ranks), [min(ranks), max(ranks)], lost_share(list(updates.values())))


def require_free(folder: Path) -> None:
    """Raise if an adapter that is written there would be mixed with what is there."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise OptionError(f"{folder}: is there already and not empty; name another folder, or remove it")
