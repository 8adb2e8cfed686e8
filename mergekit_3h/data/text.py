"""Views of a text that ignore what does not change its meaning."""

from __future__ import annotations

import unicodedata

# Typographic marks that NFKC leaves alone, as the plain characters people type.
_PLAIN = str.maketrans(
    {
        "\u2018": "'", "\u2019": "'", "\u201a": "'", "\u201b": "'", "\u02bc": "'", "\u00b4": "'", "`": "'",
        "\u201c": '"', "\u201d": '"', "\u201e": '"', "\u00ab": '"', "\u00bb": '"',
        "\u2010": "-", "\u2011": "-", "\u2012": "-", "\u2013": "-", "\u2014": "-", "\u2212": "-",
    }
)  # fmt: skip


def plain_text(text: str) -> str:
    """Lower case, curly quotes and dashes straightened, each run of white space one blank."""
    straight = unicodedata.normalize("NFKC", text.translate(_PLAIN)).translate(_PLAIN)
    return " ".join(straight.casefold().split())


def normalised_text(text: str) -> str:
    """``plain_text`` without punctuation: equal for two texts that use the same words.

    An apostrophe joins ("don't" is "dont"), every other punctuation mark or symbol separates words. A text of
    punctuation only keeps it, so that "?" and "!" stay different.
    """
    plain = plain_text(text)
    joined = plain.replace("'", "")
    words = "".join(" " if unicodedata.category(character)[0] in "PS" else character for character in joined)
    return " ".join(words.split()) or plain
