"""Experts on disk: trained when they are first asked for, found there afterwards.

    CACHE/full_short/seed0/helpful-float32, helpful-bf16, honest-float32, ...
    CACHE/lora_moderate/seed0/helpful-adapter beside them
    CACHE/full_short/seed0/mixture-float32, mixture-bf16 where the model that learnt all of it was asked for

python examples/lab_real/experts.py --data FOLDER --kind full_short --seeds 1
python examples/lab_real/experts.py --data FOLDER --kind full_short --seeds 1 --mixture
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
import transformers
from data import DIMENSIONS, Parts, answered, false_answers, read_all, require_files, safe_prompts, short_answers
from models import DTYPES, base_model, is_saved, load, save
from preferences import PreferenceLessons, preferences
from training import RECIPES, AnswerLessons, Lessons, together, train

from mergekit_3h.data.backends.protocol import Request
from mergekit_3h.data.backends.settings import TransformersSettings
from mergekit_3h.data.reading import read_records
from mergekit_3h.data.records import Record
from mergekit_3h.writing import write_text_whole

MIXTURE = "mixture"
"""Its name beside those of the experts."""

REPLY_TOKENS = 48
"""Of the base, where it is asked; what follows the last whole sentence is left out."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of the public data files")
    parser.add_argument("--cache", type=Path, default=Path(__file__).parent / "run", help="where models are kept")
    parser.add_argument("--kind", nargs="+", choices=list(RECIPES), default=list(RECIPES), help="default: all")
    parser.add_argument("--seeds", type=int, default=1, help="how many sets of experts of each kind")
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--mixture", action="store_true", help="not the experts, but one model that learns all of it")
    parser.add_argument("--device", default="cpu", help="cpu, or cuda where there is one")
    arguments = parser.parse_args()
    require_files(arguments.data)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    workshop = Workshop(arguments.data, arguments.cache, arguments.device)
    for kind in arguments.kind:
        for seed in range(arguments.first_seed, arguments.first_seed + arguments.seeds):
            if arguments.mixture:
                workshop.mixture(kind, seed)
            else:
                workshop.experts(kind, seed)


def stem_of(cache: Path, kind: str, seed: int, name: str) -> Path:
    """The folder of an expert without its dtype's ending."""
    return cache / kind / f"seed{seed}" / name


def folder_of(stem: Path, dtype: str) -> Path:
    return stem.with_name(f"{stem.name}-{dtype}")


def _is_made(stem: Path) -> bool:
    return all(is_saved(folder_of(stem, dtype)) for dtype in DTYPES)


@dataclass(frozen=True)
class Workshop:
    """Where the data are, where models are kept, and what computes."""

    data: Path
    cache: Path
    device: str

    @cached_property
    def records(self) -> dict[str, Parts]:
        """Everything that is learnt and measured. The look-alikes' answers are the base's, asked for once."""
        return read_all(self.data, self._base_replies("look_alikes", safe_prompts(self.data)))

    def experts(self, kind: str, seed: int, dimensions: Sequence[str] = DIMENSIONS) -> dict[str, Path]:
        """The folders of one set of experts without their dtype's ending, trained as far as they are not there."""
        stems = {dimension: stem_of(self.cache, kind, seed, dimension) for dimension in dimensions}
        missing = [name for name, stem in stems.items() if not _is_made(stem)]
        for dimension in missing:
            self._make(stems[dimension], kind, seed, [dimension])
        return stems

    def expert(self, kind: str, dimension: str, seed: int) -> Path:
        """The same of a single one."""
        return self.experts(kind, seed, [dimension])[dimension]

    def mixture(self, kind: str, seed: int) -> Path:
        """The same of one model that learns what the experts of this seed learn, in one training: their lessons in
        random order, in as many steps as they take together."""
        stem = stem_of(self.cache, kind, seed, MIXTURE)
        if not _is_made(stem):
            self._make(stem, kind, seed, DIMENSIONS)
        return stem

    def _make(self, stem: Path, kind: str, seed: int, dimensions: Sequence[str]) -> None:
        """Train on the lessons of one dimension, or of several."""
        model, tokenizer = load(base_model(self.cache, "float32"))
        model = model.to(self.device)
        if self.device == "cpu":
            model.set_attn_implementation("eager")  # short lessons: a tenth to a sixth faster than the fused one there
        recipe = RECIPES[kind]
        every = [self._lessons(name, model, tokenizer, recipe.learns_from) for name in dimensions]
        lessons, recipe = together(every, recipe, seed) if len(every) > 1 else (every[0], recipe)
        kept = stem.with_name(f"{kind}-seed{seed}-{stem.name}.pt")
        kept.parent.mkdir(parents=True, exist_ok=True)
        expert = train(model, lessons, recipe, seed, kept)
        if recipe.weights == "lora":
            expert.save_pretrained(stem.with_name(f"{stem.name}-adapter"))
            expert = expert.merge_and_unload()
        for dtype, rounding in DTYPES.items():
            save(expert, tokenizer, folder_of(stem, dtype), rounding)
        kept.unlink(missing_ok=True)

    def _lessons(self, dimension: str, base: Any, tokenizer: Any, learns_from: str) -> Lessons:
        records = self.records[dimension]["train"]
        if learns_from == "answers":
            return AnswerLessons(short_answers(records, tokenizer))
        instead = self._instead(dimension, records)
        both = [
            [record, record.changed(response=instead[record.question])]
            for record in records
            if record.question in instead
        ]
        pairs = [pair for two in both if len(pair := short_answers(two, tokenizer)) == 2]
        chosen, rejected = ([pair[i] for pair in pairs] for i in (0, 1))
        return PreferenceLessons(preferences(base, chosen, rejected))

    def _instead(self, dimension: str, records: Sequence[Record]) -> Mapping[str, str]:
        """By question, what is not to be answered: a common mistake, else what the base says, unless it refuses."""
        if dimension == "honest":
            return false_answers(self.data)
        asked = [record for record in records if record.set != "overrefusal"]
        return {record.question: record.response or "" for record in self._base_replies(f"{dimension}_replies", asked)}

    def _base_replies(self, name: str, prompts: Sequence[Record]) -> list[Record]:
        """The prompts as the base answers them, without refusals; kept in a file of that name."""
        kept = self.cache / f"{name}.jsonl"
        if not kept.exists():
            base = base_model(self.cache, "bf16")
            backend = TransformersSettings(model=str(base), device=self.device, batch_size=32).open()
            asked = [Request(messages=prompt.chat(), max_new_tokens=REPLY_TOKENS) for prompt in prompts]
            records = answered(prompts, [completion.text or "" for completion in backend.complete(asked)])
            backend.close()
            write_text_whole(kept, "".join(r.model_dump_json(exclude_defaults=True) + "\n" for r in records))
        return list(read_records(kept))


if __name__ == "__main__":
    torch.set_num_threads(max(1, int(os.environ.get("OMP_NUM_THREADS", os.cpu_count() or 1))))
    main()
