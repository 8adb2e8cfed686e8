"""Gains, forgetting, ranks and ties, from results with known values."""

from __future__ import annotations

import random
from typing import Any

import pytest

from mergekit_3h.data.records import DataError
from mergekit_3h.errors import OptionError
from mergekit_3h.evaluation.gains import gain_kept, likelihood_metrics, scored_metrics
from mergekit_3h.evaluation.items import EvaluatedItem
from mergekit_3h.evaluation.proof import verdicts
from mergekit_3h.evaluation.result import (
    EvaluationResult,
    MetricResult,
    ScoreWithInterval,
    dimension_scores,
    mean_or_none,
)
from mergekit_3h.evaluation.side_by_side import AVERAGE, FORGETTING, SideBySide, side_by_side


def metric(values: list[float | None], dimension: str | None, **changes: Any) -> MetricResult:
    items = [
        EvaluatedItem(id=str(place), prompt="p", value=value, reason=None if value is not None else "mute")
        for place, value in enumerate(values)
    ]
    known = [value for value in values if value is not None]
    given = {"kind": "multiple-choice", "better": "higher", "scale": 100.0, "weight": 1.0, "key": "k", **changes}
    score = given["scale"] * sum(known) / len(known) if known else None
    return MetricResult(dimension=dimension, items=items, **{"score": score, **given})


def result(name: str, **metrics: MetricResult) -> EvaluationResult:
    dimensions = list(dict.fromkeys(m.dimension for m in metrics.values() if m.dimension))
    scores = dimension_scores(metrics, dimensions)
    return EvaluationResult(
        model=name,
        model_identity=name,
        suite="s",
        suite_key="k",
        seed=0,
        resamples=400,
        unscored_limit=0.05,
        device="cpu",
        dtype="float32",
        metrics=metrics,
        dimensions={one: ScoreWithInterval(score=score) for one, score in scores.items()},
        average=ScoreWithInterval(score=mean_or_none(list(scores.values()))),
    )


def outcomes(share: float, count: int = 200) -> list[float | None]:
    """The first ``share`` of the items right: models differ on as few items as they can."""
    return [float(i < share * count) for i in range(count)]


@pytest.fixture
def four() -> dict[str, EvaluationResult]:
    """The expert gains 40 points, merge a keeps 30 of them, merge b 28, and b loses 10 of what nobody trained for."""
    shares = {"base": (0.3, 0.8), "expert": (0.7, 0.8), "a": (0.6, 0.8), "b": (0.58, 0.7)}
    nll = {"base": 2.0, "expert": 1.0, "a": 1.25, "b": 1.5}
    return {
        name: result(
            name,
            skill=metric(outcomes(mine), "helpful"),
            skill_nll=metric(
                [nll[name] + 0.001 * (i % 7) for i in range(50)],
                "helpful",
                kind="answer-likelihood",
                better="lower",
                scale=1.0,
            ),
            other=metric(outcomes(rest), None),
        )
        for name, (mine, rest) in shares.items()
    }


@pytest.fixture
def table(four: dict[str, EvaluationResult]) -> SideBySide:
    return side_by_side(four, "base", {"helpful": "expert"})


def test_the_share_kept_of_the_experts_gain(table: SideBySide) -> None:
    rows = {row.name: row for row in table.rows}
    assert rows["a"].gains["helpful"].share == pytest.approx(0.75)
    assert rows["b"].gains["helpful"].share == pytest.approx(0.70)
    assert rows["a"].likelihood_gains["helpful"].share == pytest.approx(0.75), "lower is better: the sign is turned"
    assert rows["b"].likelihood_gains["helpful"].share == pytest.approx(0.5)
    assert rows["a"].mean_gain() == (pytest.approx(0.75), 1) and rows["expert"].gains["helpful"].share == 1.0
    interval = rows["a"].gains["helpful"].interval
    assert interval is not None and interval.low < 0.75 < interval.high
    assert not rows["base"].gains


def test_forgetting_is_what_the_base_could_do_better(table: SideBySide) -> None:
    rows = {row.name: row for row in table.rows}
    assert rows["b"].value(FORGETTING) == pytest.approx(10.0) and rows["a"].value(FORGETTING) == 0.0
    assert rows["base"].value(FORGETTING) is None
    assert rows["b"].value(AVERAGE) == pytest.approx(58.0), "in no average"


def test_no_share_where_the_experts_own_gain_may_be_none(four: dict[str, EvaluationResult]) -> None:
    def share(expert: float) -> Any:
        draws = random.Random(1)
        noisy = metric([float(draws.random() < expert) for _ in range(200)], "helpful")
        return gain_kept(four["a"], four["base"], result("e", skill=noisy), {"skill": 1.0})

    within, none = share(0.33), share(0.1)
    assert within.share is None and within.why_not == "the expert's own gain may be chance"
    assert none.share is None and none.why_not == "the expert is no better than the base"
    assert gain_kept(four["a"], four["base"], four["expert"], {}).why_not == "not measured"


@pytest.mark.parametrize("count", [2, 5, 6])
def test_with_too_few_items_nothing_is_clear(count: int) -> None:
    """All items differ, so every interval has no width; only six of them cannot be chance."""
    wrong, right = [0.0] * count, [1.0] * count
    results = {
        name: result(name, skill=metric(list(values), "helpful"), other=metric(list(rest), None))
        for name, values, rest in (("base", wrong, right), ("expert", right, right), ("a", wrong, wrong))
    }
    results["b"] = results["expert"]
    enough = count >= 6
    table = side_by_side(results, "base", {"helpful": "expert"})
    rows = {row.name: row for row in table.rows}
    assert rows["b"].gains["helpful"].share == (1.0 if enough else None)
    assert rows["b"].gains["helpful"].why_not == ("" if enough else f"too few items ({count}, of at least 6)")
    assert rows["a"].ties == (set() if enough else {"skill", "helpful", "other", AVERAGE})
    assert (rows["a"].scores[FORGETTING].low is None) == (not enough)
    note = f"too few items to call a difference clear, at least 6 are needed: skill ({count}), other ({count})"
    assert (note in table.notes) == (not enough)
    sentences, is_bad = verdicts(results, "base", "a", {"helpful": "expert"})
    assert is_bad == enough and ("lost against expert by 100.00 points" in sentences[0]) == enough
    forgets = "Too few items to tell whether" if not enough else "The merge has forgotten"
    assert sentences[-1].startswith(forgets)


def test_one_metric_with_few_items_makes_the_average_unsure() -> None:
    def one(many: float, few: float) -> EvaluationResult:
        return result("m", many=metric(outcomes(many), "helpful"), few=metric([few] * 2, "helpful"))

    table = side_by_side({"a": one(0.9, 1.0), "b": one(0.3, 0.0)})
    assert table.rows[1].ties == {"few", "helpful", AVERAGE}


@pytest.mark.parametrize("differ", [3, 5, 6])
def test_a_few_items_that_differ_alike_may_be_chance_in_an_average_too(differ: int) -> None:
    """Of 2 x 12 items some are lost and none is won: a bootstrap alone calls five of them clear."""
    right, worse = [1.0] * 12, [float(i >= 3) for i in range(12)]

    def one(first: list[Any], second: list[Any]) -> EvaluationResult:
        return result("m", first=metric(first, "helpful"), second=metric(second, "helpful"), other=metric(second, None))

    lossy = one(worse, [float(i >= differ - 3) for i in range(12)])
    whole = one(right, right)
    table = side_by_side({"whole": whole, "lossy": lossy})
    assert table.rows[1].ties >= {"first", "second"}
    assert ({"helpful", AVERAGE} <= table.rows[1].ties) == (differ < 6)
    results = {"base": lossy, "expert": whole, "merge": lossy}
    sentences, is_bad = verdicts(results, "base", "merge", {"helpful": "expert"})
    assert is_bad == (differ == 6)
    assert ("kept; the difference to expert may be chance" in sentences[0]) == (differ < 6)
    gain = gain_kept(lossy, lossy, whole, scored_metrics(whole, "helpful"))
    assert gain.why_not == ("the expert's own gain may be chance" if differ < 6 else "")


def test_what_is_forgotten_by_chance_is_not_told(four: dict[str, EvaluationResult]) -> None:
    def one(lost: int) -> EvaluationResult:
        rest = metric([float(i >= lost) for i in range(12)], None)
        return result("m", skill=metric(outcomes(0.6), "helpful"), other=rest)

    for lost, is_told in ((4, False), (6, True)):
        sentences, _ = verdicts({"base": one(0), "merge": one(lost)}, "base", "merge", {})
        assert any("has forgotten" in sentence for sentence in sentences) == is_told


def test_ranks_are_among_merges_and_ties_are_paired(table: SideBySide) -> None:
    column = table.column("skill")
    assert column is not None
    rows = {row.name: row for row in table.rows}
    assert table.rank_of(rows["a"], column) == 1 and table.rank_of(rows["b"], column) == 2
    assert table.rank_of(rows["expert"], column) is None, "better, but no merge"
    nll = table.column("skill_nll")
    assert nll is not None and table.rank_of(rows["a"], nll) == 1
    assert "skill" in rows["b"].ties, "4 items of 200"
    assert "skill_nll" not in rows["b"].ties


def test_equal_scores_share_their_rank(four: dict[str, EvaluationResult]) -> None:
    table = side_by_side({"a": four["a"], "same": four["a"], "b": four["b"]})
    column = table.column("skill")
    assert column is not None
    assert [table.rank_of(row, column) for row in table.rows] == [1, 1, 2]
    assert "skill" in table.rows[1].ties, "a model does not differ from itself"


def test_only_items_that_all_have_are_paired(four: dict[str, EvaluationResult]) -> None:
    """A judge that was mute on the items that are hard for the merge must not make it look better."""
    values = outcomes(0.6)
    mute = result("mute", skill=metric([None if i >= 150 else v for i, v in enumerate(values)], "helpful"))
    found = gain_kept(mute, four["base"], four["expert"], {"skill": 1.0})
    # Of the first 150 items: base 60, expert 140, merge 120 right.
    assert found.share == pytest.approx(60 / 80)
    assert mute.metrics["skill"].unscored() == {"mute": 50}
    assert side_by_side({"mute": mute, "a": four["a"]}).rows[0].unscored == {"skill": pytest.approx(0.25)}


def test_what_is_measured_differently_is_not_compared(four: dict[str, EvaluationResult]) -> None:
    other = result("other", skill=metric(outcomes(0.5), "helpful", key="another"))
    with pytest.raises(DataError, match="base and other measured 'skill' differently"):
        side_by_side({"base": four["base"], "other": other})


def test_a_metric_that_some_lack_is_a_note(four: dict[str, EvaluationResult]) -> None:
    partial = result("partial", skill=metric(outcomes(0.5), "helpful"))
    table = side_by_side({**four, "partial": partial}, "base", {"helpful": "expert"})
    assert "other was not measured for partial" in table.notes
    assert table.rows[-1].value("other") is None and table.rows[-1].gains["helpful"].share is not None


@pytest.mark.parametrize(
    ("base", "experts", "message"),
    [
        ("bas", {}, "no result is called 'bas'; did you mean 'base'?"),
        ("base", {"helpfull": "expert"}, "no dimension 'helpfull'; did you mean 'helpful'?"),
        ("base", {"helpful": "exprt"}, "no result is called 'exprt'; did you mean 'expert'?"),
        (None, {"helpful": "expert"}, "name its result with --base"),
    ],
)
def test_wrong_roles_are_explained(four, base: str | None, experts: dict[str, str], message: str) -> None:
    with pytest.raises(OptionError, match=message.replace("?", r"\?")):
        side_by_side(four, base, experts)


def test_scores_that_are_no_means_are_compared_by_their_errors() -> None:
    def one(score: float) -> EvaluationResult:
        return result("m", f1=metric([None] * 9, "helpful", score=score, standard_error=2.0, kind="lm-eval"))

    near, far = side_by_side({"a": one(50.0), "b": one(48.0)}), side_by_side({"a": one(50.0), "b": one(30.0)})
    assert near.rows[1].ties == {"f1", "helpful", AVERAGE} and far.rows[1].ties == set()
    assert one(50.0).metrics["f1"].unscored_share == 0.0


def test_likelihoods_and_weights(four: dict[str, EvaluationResult]) -> None:
    assert scored_metrics(four["a"], "helpful") == {"skill": 1.0}
    assert likelihood_metrics(four["a"], "helpful") == {"skill_nll": 1.0}
    weighed = {
        "x": metric([1.0], "d", weight=3.0),
        "y": metric([0.0], "d"),
        "z": metric([0.0], "d", weight=0.0),
        "missing": metric([None], "e"),
    }
    assert dimension_scores(weighed, ["d", "e"]) == {"d": 75.0, "e": None}
