"""Splits: reproducible, in proportion, and without the same question on both sides."""

from __future__ import annotations

import random
from collections import Counter

import pytest

from mergekit_3h.data.records import DataError, Record
from mergekit_3h.data.similarity import similarity
from mergekit_3h.data.splits import Assignment, split

SHARES = {"search": 0.7, "check": 0.2, "test": 0.1}
EVERY_WAY: tuple[Assignment, ...] = ("hash", "exact")


def records(count: int) -> list[Record]:
    made = random.Random(5)
    letters = "abcdefghijklmnopqrstuvwxyz "
    return [
        Record(
            prompt="".join(made.choices(letters, k=30)) + "?",
            set="safety" if number % 4 else "domain",
            category=f"c{number % 3}",
        )
        for number in range(count)
    ]


def places(parts: dict[str, list[Record]]) -> dict[str, str]:
    return {record.id: name for name, part in parts.items() for record in part}


@pytest.mark.parametrize("by", EVERY_WAY)
def test_every_record_is_in_one_part_in_its_order_whatever_the_order_given(by: Assignment) -> None:
    given = records(300)
    parts = split(given, SHARES, seed=1, by=by)
    assert sorted(record.id for part in parts.values() for record in part) == sorted(record.id for record in given)
    order = {record.id: place for place, record in enumerate(given)}
    for part in parts.values():
        assert [order[record.id] for record in part] == sorted(order[record.id] for record in part)
    shuffled = random.Random(0).sample(given, len(given))
    assert places(split(shuffled, SHARES, seed=1, by=by)) == places(parts)
    assert places(split(given, SHARES, seed=2, by=by)) != places(parts)


def test_the_hash_of_an_id_decides_once_and_for_all() -> None:
    parts = split([Record(id="a", prompt="A?", set="domain"), Record(id="c", prompt="C?", set="domain")], SHARES)
    # Written down once: another assignment would move questions from the search to the test.
    assert places(parts) == {"a": "search", "c": "test"}


def test_records_added_later_move_no_others_by_hash() -> None:
    given = records(500)
    before = places(split(given[:300], SHARES))
    after = places(split(given, SHARES))
    assert all(after[record_id] == part for record_id, part in before.items())


def test_hash_shares_are_met_on_average() -> None:
    sizes = {name: len(part) for name, part in split(records(2000), SHARES).items()}
    for name, share in SHARES.items():
        # Four standard deviations of a binomial count.
        assert abs(sizes[name] - 2000 * share) < 4 * (2000 * share * (1 - share)) ** 0.5


def test_exact_shares_hold_in_every_stratum() -> None:
    parts = split(records(1200), SHARES, by="exact")
    for stratum, size in Counter((record.set, record.category) for record in records(1200)).items():
        for name, share in SHARES.items():
            count = sum((record.set, record.category) == stratum for record in parts[name])
            # Rounding, and what the strata before were owed.
            assert abs(count - size * share) <= 2
    assert [len(part) for part in parts.values()] == [840, 240, 120]


def test_strata_of_one_do_not_all_land_in_the_largest_part() -> None:
    given = [Record(prompt=f"{number}?", set="domain", category=f"c{number}") for number in range(100)]
    assert [len(part) for part in split(given, SHARES, by="exact").values()] == [70, 20, 10]


@pytest.mark.parametrize("by", EVERY_WAY)
def test_the_same_prompt_is_never_on_both_sides(by: Assignment) -> None:
    given = [
        Record(prompt=prompt, response=reply, set=name, source=reply)
        for number in range(60)
        for prompt, name in ((f"Is {number} blue?", "safety"), (f"is {number} BLUE", "domain"))
        for reply in ("No.", "Never.")
    ]
    parts = split(given, {"a": 0.5, "b": 0.5}, by=by)
    assert not {record.normalised for record in parts["a"]} & {record.normalised for record in parts["b"]}
    assert min(len(part) for part in parts.values()) > 60


@pytest.mark.parametrize("by", EVERY_WAY)
def test_a_conversation_and_its_beginning_are_never_on_both_sides(by: Assignment) -> None:
    openings = [f"Is number {number} blue?" for number in range(40)]
    longer = [
        [
            {"role": "system", "content": f"You are {opening}"},
            {"role": "user", "content": opening},
            {"role": "assistant", "content": "No."},
            {"role": "user", "content": f"Why not, {turn}?"},
        ]
        for opening in openings
        for turn in range(2)
    ]
    given = [Record(prompt=opening.upper(), set="domain") for opening in openings]
    given += [Record.model_validate({"messages": turns, "set": "domain"}) for turns in longer]
    parts = split(given, {"a": 0.5, "b": 0.5}, by=by)
    asked_first = [
        {next(turn["content"] for turn in record.chat() if turn["role"] == "user").lower() for record in part}
        for part in parts.values()
    ]
    assert not asked_first[0] & asked_first[1]
    assert min(len(part) for part in parts.values()) > 30


@pytest.mark.parametrize("by", EVERY_WAY)
def test_near_duplicates_never_straddle_even_along_a_chain(by: Assignment) -> None:
    text = "why should the walls of this old house be painted in a light blue"
    words = ["green", "red", "white", "black", "pale", "dark", "warm", "cold", "deep", "soft", "bright", "matte"]
    chain, current = [], text.split()
    for place, word in enumerate(words):
        current[place] = word
        chain.append(Record(prompt=" ".join(current), set="safety"))
    assert (
        similarity(chain[0].normalised, chain[-1].normalised)
        < 0.3
        < similarity(chain[0].normalised, chain[1].normalised)
    )
    given = records(100) + chain
    for seed in range(8):
        found = places(split(given, {"a": 0.5, "b": 0.5}, seed, by, near_duplicates=0.5))
        assert len({found[record.id] for record in chain}) == 1
    apart = [places(split(given, {"a": 0.5, "b": 0.5}, seed, by)) for seed in range(8)]
    assert any(len({found[record.id] for record in chain}) == 2 for found in apart)


@pytest.mark.parametrize("shares", [{}, {"a": 0.5}, {"a": 1.5, "b": -0.5}, {"a": 0.5, "b": 0.6}])
def test_shares_that_do_not_sum_to_one_are_refused(shares: dict[str, float]) -> None:
    with pytest.raises(DataError, match="sum to 1"):
        split(records(3), shares)


def test_an_empty_part_is_warned_about(caplog: pytest.LogCaptureFixture) -> None:
    split(records(1), SHARES)
    assert "is empty" in caplog.text
