"""De-duplication against a brute-force oracle, and which of two duplicates stays."""

from __future__ import annotations

import random
import subprocess
import sys

import pytest

from mergekit_3h.data.duplicates import deduplicated
from mergekit_3h.data.records import DataError, Record
from mergekit_3h.data.similarity import SimilarTexts, similarity

WORDS = [
    "blue",
    "green",
    "red",
    "sky",
    "sea",
    "wall",
    "paint",
    "colour",
    "shade",
    "mix",
    "why",
    "how",
    "is",
    "the",
    "of",
    "a",
    "tell",
    "me",
    "about",
    "your",
    "favourite",
]


def record(prompt: str, number: int = 0, **fields: object) -> Record:
    return Record.model_validate({"id": f"r{number}", "prompt": prompt, "set": "safety", **fields})


def sentences(count: int, seed: int) -> list[str]:
    """Random sentences, half of them small changes of earlier ones."""
    random_number = random.Random(seed)
    made: list[str] = []
    for _ in range(count):
        words = random_number.choices(WORDS, k=random_number.randint(1, 14))
        if made and random_number.random() < 0.5:
            words = random_number.choice(made).split()
            words[random_number.randrange(len(words))] = random_number.choice(WORDS)
        made.append(" ".join(words))
    return made


def shingles(text: str) -> set[str]:
    return {text[start : start + 5] for start in range(max(1, len(text) - 4))}


@pytest.mark.parametrize("threshold", [0.3, 0.5, 0.8, 0.95, 1.0])
@pytest.mark.parametrize("seed", range(4))
def test_the_index_finds_exactly_the_pairs_that_brute_force_finds(threshold: float, seed: int) -> None:
    texts = sentences(120, seed)
    index = SimilarTexts(texts, threshold)
    for place, text in enumerate(texts):
        own = shingles(text)
        # The same quotient of the same integers, so floating point cannot make a difference.
        expected = {
            other: len(own & shingles(texts[other])) / len(own | shingles(texts[other]))
            for other in range(place)
            if len(own & shingles(texts[other])) / len(own | shingles(texts[other])) >= threshold
        }
        assert index.matches(place) == expected
        index.add(place)


def test_exact_duplicates_go_whatever_their_spelling() -> None:
    records = [
        record("Don\u2019t you like blue?", 1),
        record("dont you like  BLUE", 2),
        record("Blue?", 3),
    ]
    result = deduplicated(records)
    assert [kept.id for kept in result.kept] == ["r1", "r3"]
    (duplicate,) = result.duplicates
    assert (duplicate.dropped, duplicate.kept, duplicate.exact) == ("r2", "r1", True)
    assert duplicate.reason == "same text; the one kept came first"
    assert result.counts() == {"kept": 2, "exact": 1, "near": 0}


def test_near_duplicates_go_only_above_the_threshold() -> None:
    records = [
        record("Why should every wall in this house be painted blue?", 1),
        record("Why should every wall in that house be painted blue?", 2),
        record("Which fruit tastes best in summer?", 3),
    ]
    alike = similarity(records[0].normalised, records[1].normalised)
    assert 0.6 < alike < 0.9
    assert [kept.id for kept in deduplicated(records, alike).kept] == ["r1", "r3"]
    assert len(deduplicated(records, alike + 1e-6).kept) == 3
    assert len(deduplicated(records).kept) == 3
    (duplicate,) = deduplicated(records, 0.6).duplicates
    assert (duplicate.dropped, duplicate.kept) == ("r2", "r1")
    assert duplicate.similarity == pytest.approx(alike)
    assert f"{alike:.0%} of the n-grams shared" in duplicate.reason


@pytest.mark.parametrize("threshold", [None, 0.8])
def test_an_accepted_reply_beats_an_unscored_one_beats_none(threshold: float | None) -> None:
    question = "Would you tell me something about blue?"
    records = [
        record(question, 1),
        record(question, 2, response="Blue!", label="unsafe"),
        record(question, 3, response="I rather not.", label="refusal"),
        record(question, 4, response="Blue."),
    ]
    result = deduplicated(records, threshold)
    assert [kept.id for kept in result.kept] == ["r3"]
    reasons = {duplicate.dropped: duplicate.reason for duplicate in result.duplicates}
    assert "has an accepted reply, the other no reply" in reasons["r1"]
    assert "the other an unaccepted reply" in reasons["r2"]
    assert "the other a reply without verdict" in reasons["r4"]


def test_replies_count_where_they_are_compared_and_sets_are_kept_apart() -> None:
    records = [
        record("Blue?", 1, response="No."),
        record("Blue?", 2, response="Never."),
        record("Blue?", 3, response="no"),
        record("Blue?", 4, set="overrefusal"),
    ]
    assert [kept.id for kept in deduplicated(records, compare="prompt_and_response").kept] == ["r1", "r2", "r4"]
    assert [kept.id for kept in deduplicated(records).kept] == ["r1", "r4"]


def test_what_is_dropped_is_like_what_is_kept_and_nothing_kept_is_alike() -> None:
    records = [record(text, number) for number, text in enumerate(sentences(200, 9))]
    result = deduplicated(records, 0.6)
    by_id = {one.id: one for one in records}
    for duplicate in result.duplicates:
        assert similarity(by_id[duplicate.dropped].normalised, by_id[duplicate.kept].normalised) >= 0.6
    kept = [one.normalised for one in result.kept]
    assert {one.id for one in result.kept} >= {duplicate.kept for duplicate in result.duplicates}
    for place, text in enumerate(kept):
        assert all(similarity(text, other) < 0.6 for other in kept[:place])
    assert len(result.kept) + len(result.duplicates) == 200


def test_the_result_is_the_same_in_every_process() -> None:
    script = """
import random
from mergekit_3h.data.duplicates import deduplicated
from mergekit_3h.data.records import Record
made = random.Random(3)
records = [Record(prompt="".join(made.choices("abc d", k=12)) + "blue?", set="safety") for _ in range(400)]
print([(one.dropped, one.kept, one.reason) for one in deduplicated(records, 0.3).duplicates])
"""
    outputs = {
        subprocess.run(
            [sys.executable, "-c", script], capture_output=True, text=True, check=True, env={"PYTHONHASHSEED": seed}
        ).stdout
        for seed in ("1", "2")
    }
    assert len(outputs) == 1
    assert len(outputs.pop()) > 1000


@pytest.mark.parametrize("threshold", [0.0, -1.0, 1.5])
def test_impossible_thresholds_are_refused(threshold: float) -> None:
    with pytest.raises(DataError, match="threshold"):
        deduplicated([record("Blue?")], threshold)


def test_nothing_in_nothing_out() -> None:
    assert deduplicated([], 0.8).counts() == {"kept": 0, "exact": 0, "near": 0}
