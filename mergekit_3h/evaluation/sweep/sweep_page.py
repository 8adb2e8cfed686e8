"""A sweep as a page: the table of the test split, its plots, and every trial on the validation split."""

from __future__ import annotations

from mergekit_3h.evaluation.comparison_page import breakable_name, comparison_page
from mergekit_3h.evaluation.sweep.sweeping import SweepOutcome
from mergekit_3h.pages import PageSection, listing, paragraph, strong, table


def sweep_page(outcome: SweepOutcome, title: str) -> str:
    rows = [
        [
            breakable_name(method.label),
            strong(trial.trial) if trial.trial == method.best else trial.trial,
            "failed" if trial.goal is None else f"{trial.goal:.3f}",
        ]
        for method in outcome.methods
        for trial in method.trials
    ]
    explained = paragraph(
        "Every method had the same number of trials. Bold: the trial that was best on the validation split; its scores "
        "on the test split stand in the table above. 1.000 means: on average the whole of the experts' gains."
    )
    errors = [
        f"{method.label}, {trial.trial}: {trial.error}"
        for method in outcome.methods
        for trial in method.trials
        if trial.error
    ]
    parts = [table(["method", "trial", "goal"], rows, left=2), explained]
    trials = PageSection("Trials on the validation split", [*parts, listing(errors, "warning")] if errors else parts)
    return comparison_page([outcome.table()], outcome.results(), title=title, more=[trials])
