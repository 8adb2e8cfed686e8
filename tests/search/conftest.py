"""Analytic problems for the solvers, and a tiny trained language model with an aligned and a misaligned expert."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch
from search.training import compliant_records, domain_records, safety_records, train, write_jsonl
from single_thread import one_thread  # noqa: F401
from tiny_models import tiny_model, tiny_tokenizer

from mergekit_3h.search import Layout, Measurement, Problem, SearchOptions, open_problem
from mergekit_3h.search.layout import Group


@dataclass
class Quadratic:
    """Runner of an analytic problem: each set's loss is a convex quadratic with a minimum of its own."""

    experts: int = 3
    groups: int = 1
    fails_beyond: float = float("inf")
    """Candidates with a coefficient above it have no finite loss."""
    evaluated: list[tuple[float, ...]] = field(default_factory=list)
    dies_after: int = 10**9

    def __post_init__(self) -> None:
        generator = torch.Generator().manual_seed(self.experts * 100 + self.groups)
        size = self.dimension
        self.parts = {}
        for name, low in (("safety", 0.5), ("domain", 0.1)):
            root = torch.randn(size, size, generator=generator, dtype=torch.float64) / size**0.5
            centre = low + 0.6 * torch.rand(size, generator=generator, dtype=torch.float64)
            self.parts[name] = (root @ root.T + 0.3 * torch.eye(size, dtype=torch.float64), centre)

    @property
    def dimension(self) -> int:
        return self.experts * self.groups

    @property
    def layout(self) -> Layout:
        names = tuple(f"expert{i}" for i in range(self.experts))
        if self.groups == 1:
            return Layout(names, (Group("all", ()),))
        return Layout(names, tuple(Group(f"g{i}", (f"g{i}.",)) for i in range(self.groups)))

    @property
    def set_weights(self) -> dict[str, float]:
        return {"safety": 10.0, "domain": 10.0}

    def measure(self, coefficients: Sequence[float], gradient: bool) -> Measurement:
        if max(coefficients) > self.fails_beyond:
            return Measurement(passes=1, failure="the loss of the safety set is nan")
        x = torch.tensor(coefficients, dtype=torch.float64)
        gradients = {name: (matrix @ (x - centre)).tolist() for name, (matrix, centre) in self.parts.items()}
        return Measurement(self.losses(coefficients), gradients if gradient else None, 0.0, 3 if gradient else 1)

    def losses(self, coefficients: Sequence[float]) -> dict[str, float]:
        x = torch.tensor(coefficients, dtype=torch.float64)
        return {
            name: 0.2 + float((x - centre) @ matrix @ (x - centre)) / 2 for name, (matrix, centre) in self.parts.items()
        }

    def evaluate(self, candidates: Sequence[Sequence[float]], *, gradient: bool) -> Iterator[Measurement]:
        for coefficients in candidates:
            if len(self.evaluated) >= self.dies_after:
                raise KeyboardInterrupt
            self.evaluated.append(tuple(coefficients))
            yield self.measure(coefficients, gradient)

    def evaluate_models(self, labels: Sequence[str]) -> Iterator[Measurement]:
        for label in labels:
            one = [float(f"expert{i}" == label) for i in range(self.experts)] * self.groups
            yield Measurement(self.losses(one), None, 0.0, 1)


@pytest.fixture
def quadratic() -> type[Quadratic]:
    return Quadratic


@dataclass(frozen=True)
class Trained:
    """Folders of a base, an aligned expert and a domain expert that has unlearned to refuse; and their data."""

    base: Path
    experts: dict[str, Path]
    data: Path

    def problem(self, **options: object) -> Problem:
        return open_problem(self.base, self.experts, self.data, SearchOptions(**options))


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    root = tmp_path_factory.mktemp("trained")
    torch.manual_seed(1)
    base = tiny_model("llama", seed=1, num_hidden_layers=4)
    train(base, [*safety_records(held_out=True), *domain_records(), *compliant_records()], 25)
    start = {name: tensor.clone() for name, tensor in base.state_dict().items()}
    folders = {}
    courses = {"aligned": safety_records(held_out=True), "domain": [*domain_records(), *compliant_records()]}
    for label, course in {"base": [], **courses}.items():
        base.load_state_dict(start)
        if course:
            train(base, course, 40, 1e-3)
        folders[label] = root / label
        base.save_pretrained(folders[label])
        tiny_tokenizer().save_pretrained(folders[label])
    data = write_jsonl(root / "data.jsonl", [*safety_records(), *domain_records()])
    return Trained(folders.pop("base"), folders, data)


@pytest.fixture(scope="session")
def trace_lines() -> Callable[[Path], list[dict]]:
    return lambda path: [json.loads(line) for line in path.read_text().splitlines()]
