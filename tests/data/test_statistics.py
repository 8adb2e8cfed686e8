"""Counts, rates and how they are shown."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from mergekit_3h.data.presentation import as_table, save_bar_chart
from mergekit_3h.data.records import Record
from mergekit_3h.data.statistics import statistics


def replies(model: str, set_name: str, labels: str) -> list[Record]:
    """One reply for each letter: r(efusal), c(ompliance), s(afe), u(nsafe), - (no verdict)."""
    names = {"r": "refusal", "c": "compliance", "s": "safe", "u": "unsafe", "-": None}
    return [
        Record.model_validate(
            {
                "prompt": f"Question {number} about blue",
                "response": "A reply.",
                "set": set_name,
                "label": names[letter],
                "source": model,
                "category": "colours" if number % 2 else "shades",
            }
        )
        for number, letter in enumerate(labels)
    ]


def test_counts_are_right_and_unique_prompts_are_counted_once() -> None:
    records = [
        *replies("base", "safety", "rrc-"),
        Record(prompt="question 0 about BLUE!", set="safety"),
        Record(prompt="Question 0 about blue", set="domain"),
        Record(prompt="Something else", set="domain"),
    ]
    found = statistics(iter(records))
    assert (found.records, found.unique_prompts, found.with_response) == (7, 5, 4)
    assert found.sets == {"safety": 5, "domain": 2}
    assert found.unique_by_set == {"safety": 4, "domain": 2}
    assert found.categories == {"(none)": 3, "colours": 2, "shades": 2}
    assert found.labels == {"refusal": 2, "(none)": 1, "compliance": 1}
    assert found.sources == {"base": 4, "(none)": 3}


def test_the_refusal_rate_is_per_model_and_set_and_leaves_unscored_replies_out() -> None:
    records = [
        *replies("expert", "safety", "rrrc-"),
        *replies("expert", "overrefusal", "rccc"),
        *replies("base", "safety", "----"),
    ]
    rates = {(rate.source, rate.set): rate for rate in statistics(records).rates}
    assert rates["expert", "safety"].refusal_rate == pytest.approx(3 / 4)
    assert rates["expert", "safety"].unscored == 1
    assert rates["expert", "overrefusal"].refusal_rate == pytest.approx(1 / 4)
    assert rates["base", "safety"].refusal_rate is None
    assert rates["base", "safety"].unscored == rates["base", "safety"].replies == 4


def test_a_rate_is_claimed_only_where_the_guard_speaks_of_it() -> None:
    (only_safety,) = statistics(replies("a", "safety", "sssu")).rates
    assert (only_safety.refusal_rate, only_safety.safe_rate) == (None, 0.75)
    (only_refusal,) = statistics(replies("a", "safety", "rrrc")).rates
    assert (only_refusal.refusal_rate, only_refusal.safe_rate) == (0.75, None)
    both = statistics([*replies("a", "safety", "rrsu"), *replies("b", "safety", "ssuu")]).rates
    assert [(rate.refusal_rate, rate.safe_rate) for rate in both] == [(0.5, 0.75), (0.0, 0.5)]


def test_the_table_shows_every_count() -> None:
    table = as_table(statistics([*replies("a|b", "safety", "rrc-"), *replies("c", "overrefusal", "cccr")]))
    assert "records             8" in table
    lines = [line.split() for line in table.splitlines()]
    assert ["a|b", "safety", "4", "66.7%", "-", "1"] in lines
    assert ["c", "overrefusal", "4", "25.0%", "-", "0"] in lines


def test_markdown_tables_are_tables_whatever_the_names() -> None:
    table = as_table(statistics(replies("a|b", "safety", "rrc-")), "markdown")
    section = next(part for part in table.split("\n\n") if "refused" in part)
    header, rule, row = section.splitlines()
    assert header.count("|") == rule.count("|") == row.replace("\\|", "").count("|") == 7
    assert "a\\|b" in row


def test_long_lists_are_cut_and_sum_up() -> None:
    records = [Record(prompt=str(number), set="domain", category=f"c{number}") for number in range(100)]
    table = as_table(statistics(records))
    assert "(71 others)" in table
    assert "c99" not in table


def test_empty_data_are_no_error() -> None:
    assert "records             0" in as_table(statistics([]))


@pytest.mark.parametrize("labels", ["rrcc", "----"])
def test_the_bar_chart_is_a_picture(tmp_path: Path, labels: str) -> None:
    path = tmp_path / "chart.png"
    save_bar_chart(statistics([*replies("a", "safety", labels), *replies("b", "overrefusal", labels)]), path)
    assert path.read_bytes().startswith(b"\x89PNG")
    assert path.stat().st_size > 5_000


def test_a_chart_without_matplotlib_names_the_extra(tmp_path: Path) -> None:
    script = f"""
import sys
sys.modules["matplotlib"] = None
from mergekit_3h.data.presentation import save_bar_chart
from mergekit_3h.data.statistics import statistics
save_bar_chart(statistics([]), {str(tmp_path / "chart.png")!r})
"""
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert "MissingExtraError" in run.stderr
    assert "mergekit-3h[plots]" in run.stderr
