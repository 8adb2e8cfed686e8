"""Which texts are nearly the same: overlap of their character n-grams, found without comparing all pairs."""

from __future__ import annotations

from array import array
from collections import Counter, defaultdict
from collections.abc import Sequence
from math import ceil
from zlib import crc32

from mergekit_3h.data.records import DataError

NGRAM = 5
"""Characters of an n-gram: about a word of English, the length mostly used for near-duplicate search."""


def similarity(first: str, second: str) -> float:
    """Jaccard similarity of the n-grams of two normalised texts: shared ones over all."""
    return _jaccard(set(_ngrams(first)), set(_ngrams(second)))


class SimilarTexts:
    """An index over normalised texts that finds every earlier text at least ``threshold`` similar.

    Exact, not probabilistic. Two sets with Jaccard similarity t share an element among the first
    ``n - ceil(t n) + 1`` of their n elements in any common order (prefix filtering, Chaudhuri et al. 2006), so
    only those are indexed; rarest n-grams first keeps the candidate lists short.
    """

    def __init__(self, texts: Sequence[str], threshold: float) -> None:
        if not 0.0 < threshold <= 1.0:
            raise DataError(f"near-duplicate threshold: got {threshold}, expected more than 0 and at most 1")
        self._threshold = threshold
        frequency: Counter[int] = Counter()
        for text in texts:
            frequency.update(set(_ngrams(text)))
        self._grams = [
            array("Q", sorted(set(_ngrams(text)), key=lambda gram: (frequency[gram], gram))) for text in texts
        ]
        self._places: defaultdict[int, list[int]] = defaultdict(list)

    def add(self, place: int) -> None:
        """Let later searches find the text at this place."""
        for gram in self._prefix(place):
            self._places[gram].append(place)

    def matches(self, place: int) -> dict[int, float]:
        """Every added text similar enough to the one at this place, with the similarity."""
        candidates = {other for gram in self._prefix(place) for other in self._places.get(gram, ())}
        own, size = set(self._grams[place]), len(self._grams[place])
        found: dict[int, float] = {}
        for other in sorted(candidates):
            other_size = len(self._grams[other])
            if min(size, other_size) < self._threshold * max(size, other_size):
                continue
            score = _jaccard(own, self._grams[other])
            if score >= self._threshold:
                found[other] = score
        return found

    def _prefix(self, place: int) -> array[int]:
        grams = self._grams[place]
        # The margin keeps rounding (0.8 * 10 > 8) from shortening the prefix by one.
        return grams[: len(grams) - ceil(self._threshold * len(grams) - 1e-9) + 1]


def _jaccard(first: set[int], second: set[int] | array[int]) -> float:
    shared = len(first.intersection(second))
    return shared / (len(first) + len(second) - shared)


def _ngrams(text: str) -> list[int]:
    """Hashes of the n-grams of a text; a shorter text is one n-gram. CRC because ``hash`` changes by process."""
    count = max(len(text) - NGRAM + 1, 1)
    return [crc32(text[start : start + NGRAM].encode()) for start in range(count)]
