"""Guards and judges by name, behind one contract."""

from __future__ import annotations

from mergekit_3h.data.guards.contract import Guard, Verdict, judged, labelled, unscored
from mergekit_3h.data.guards.hallucination_judge import HallucinationJudge
from mergekit_3h.data.guards.keyword_refusal import KeywordRefusal
from mergekit_3h.data.guards.llama_guard import LlamaGuard, LlamaGuard4
from mergekit_3h.data.guards.md_judge import MDJudge
from mergekit_3h.data.guards.mt_bench import MTBench
from mergekit_3h.data.guards.refusal_judge import RefusalJudge
from mergekit_3h.data.guards.shieldgemma import ShieldGemma
from mergekit_3h.data.guards.wildguard import WildGuard
from mergekit_3h.data.records import DataError
from mergekit_3h.suggestions import did_you_mean

__all__ = [
    "GUARDS",
    "RATING_GUARDS",
    "Guard",
    "Verdict",
    "guard_named",
    "judged",
    "labelled",
    "unscored",
]

_WITH_PROMPTS = (WildGuard, ShieldGemma, MDJudge, RefusalJudge, HallucinationJudge, MTBench)
_WITHOUT_PROMPTS = (KeywordRefusal, LlamaGuard, LlamaGuard4)
GUARDS: tuple[str, ...] = tuple(kind.name for kind in (*_WITHOUT_PROMPTS, *_WITH_PROMPTS))

RATING_GUARDS: tuple[str, ...] = (HallucinationJudge.name, MTBench.name)
"""Those that give a score in place of a label."""


def guard_named(name: str, prompts: str | None = None) -> Guard:
    """A guard by its name; ``prompts`` is a folder with the user's own prompt files."""
    for kind in _WITH_PROMPTS:
        if kind.name == name:
            return kind(prompts)
    for kind in _WITHOUT_PROMPTS:
        if kind.name == name:
            return kind()
    raise DataError(f"there is no guard or judge {name!r}; {did_you_mean(name, GUARDS)}")
