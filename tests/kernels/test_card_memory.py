"""What a process reckons with of a GPU's memory. A card is made up: its numbers are what torch would say of it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from mergekit_3h.kernels import card_memory
from mergekit_3h.kernels.card_memory import free_on, keep_to_share
from mergekit_3h.methods.merging.ray_worker import MergeWorker
from mergekit_3h.search.families import TensorFamily, placed
from mergekit_3h.search.ray_runner import EvaluationWorker

DEVICE = torch.device("cuda", 0)
WHOLE = 80_000


class Card:
    """One of 80 kB."""

    free, reserved, allocated = WHOLE, 0, 0

    def __init__(self) -> None:
        self.limits: dict[int, float] = {}


@pytest.fixture
def card(monkeypatch: pytest.MonkeyPatch) -> Iterator[Card]:
    made = Card()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (made.free, WHOLE))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda _: made.reserved)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda _: made.allocated)
    monkeypatch.setattr(
        torch.cuda, "set_per_process_memory_fraction", lambda share, number: made.limits.update({number: share})
    )
    monkeypatch.setattr(card_memory, "_share", 1.0)
    yield made


def test_four_workers_on_a_card_take_a_quarter_each(card: Card) -> None:
    assert free_on(DEVICE) == WHOLE
    keep_to_share(0.25)
    assert card.limits == {0: 0.25} and free_on(DEVICE) == WHOLE // 4
    card.allocated = card.reserved = 15_000  # of its own
    card.free = WHOLE - 15_000
    assert free_on(DEVICE) == 5_000
    card.free = 3_000  # the others, or another program, have taken the rest
    assert free_on(DEVICE) == 3_000
    card.allocated = 25_000
    assert free_on(DEVICE) == 0


@pytest.mark.parametrize("gpus", [0.0, 1.0, 2.0])
def test_a_worker_with_whole_cards_has_no_limit(card: Card, gpus: float) -> None:
    """One without any may see a card of the process that started it, and does not use it."""
    card.free, card.reserved, card.allocated = 50_000, 20_000, 5_000
    keep_to_share(gpus)
    assert card.limits == {} and free_on(DEVICE) == 65_000


@pytest.mark.parametrize("kind", ["search", "merge"])
def test_the_workers_of_a_cluster_keep_to_their_share(card: Card, kind: str, tmp_path: Any) -> None:
    threads = torch.get_num_threads()
    if kind == "search":
        EvaluationWorker(lambda: pytest.fail("nothing is opened yet"), threads, 0.5)
    else:
        from mergekit.options import MergeOptions

        from mergekit_3h.methods.merging.ray_worker import MergeJob

        MergeWorker(MergeJob({}, MergeOptions(), "auto"), tmp_path, threads, 0.5, allow_non_finite=False)
    assert card.limits == {0: 0.5} and free_on(DEVICE) == WHOLE // 2


def test_a_search_puts_components_into_half_of_its_share(card: Card) -> None:
    class Family:
        def __init__(self, size: int) -> None:
            self._size = size

        def size(self) -> int:
            return self._size

        def moved(self, device: torch.device) -> str:
            return f"on {device}"

    families: dict[str, TensorFamily] = {str(size): Family(size) for size in (8_000, 9_000, 2_000)}  # type: ignore[misc]
    keep_to_share(0.25)
    kept: dict[str, Any] = dict(placed(families, DEVICE, None))
    assert [name for name, family in kept.items() if family == "on cuda:0"] == ["2000", "8000"]
