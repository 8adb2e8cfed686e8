"""What there is to measure of one seed, and the part of it that is missing."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import mixtures
import torch
import transformers
from experiment import Experiment
from experts import School
from models import Size
from results import Case, Line
from rows import rows_of
from safety import SafetyStudy
from weights import weighings_of

STUDIES = {
    "merges": "every merge, with one scale tuned",
    "weights": "merges with one weight an expert, found by the solvers of safety_merge",
    "data": "training on all lessons or some, at once or in stages",
    "safety": "an expert that lost its refusals",
}


@dataclass(frozen=True)
class Plan:
    """What is wanted. ``known`` are the lines that are there already."""

    size: Size
    kinds: tuple[str, ...]
    dtypes: tuple[str, ...]
    studies: tuple[str, ...]
    is_quick: bool
    known: frozenset[tuple[Case, str]] = field(default_factory=frozenset)

    def __call__(self, seed: int) -> Iterator[Line]:
        torch.set_num_threads(1)  # matrices this small are slower on several
        transformers.logging.set_verbosity_error()
        school = School(self.size, seed)
        for case, tasks in self._tasks(school, seed):
            for label, task in tasks.items():
                if (case, label) not in self.known:
                    yield task()

    def _tasks(self, school: School, seed: int) -> Iterator[tuple[Case, dict[str, Callable[[], Line]]]]:
        """float32 experts are there to be compared with rounded ones, so they are merged, but not weighed."""
        for kind in self.kinds:
            for dtype in self.dtypes:
                case = Case(kind, seed, dtype)
                rows = rows_of(kind, dtype, self.is_quick) if "merges" in self.studies else []
                weighings = weighings_of(kind) if "weights" in self.studies and dtype == "bf16" else ()
                experiment = Experiment(school, case)
                tasks = experiment.tasks(rows, weighings) if rows or weighings else {}
                if all((case, label) in self.known for label in tasks):
                    continue
                if idle := experiment.without_gain():
                    print(f"{kind}, seed {seed}, {dtype}: left out, its {idle[0]} expert gained nothing", flush=True)
                else:
                    yield case, tasks
        if "data" in self.studies:
            case = Case(mixtures.KIND, seed, "bf16")
            yield case, mixtures.tasks(Experiment(school, case))
        if "safety" in self.studies:
            study = SafetyStudy(school, seed)
            yield study.case, study.tasks()
