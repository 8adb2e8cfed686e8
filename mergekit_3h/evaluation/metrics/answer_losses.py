"""Mean negative log-likelihoods of given answers, in batches, remembered by the journal."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from mergekit_3h.data.records import derived_id
from mergekit_3h.evaluation.journal import Journal, Step
from mergekit_3h.evaluation.subject import EvaluatedModel, batches_of
from mergekit_3h.losses.answers import Answer, batched
from mergekit_3h.losses.objective import record_losses


def answer_losses(
    purpose: str, answers: Sequence[Answer], subject: EvaluatedModel, journal: Journal, done: Step
) -> list[float]:
    """For each answer the mean over its tokens of minus their log-probability."""

    def measured(places: list[int]) -> Iterator[tuple[int, list[float]]]:
        import torch

        done(len(answers) - len(places))
        batches = batched({purpose: answers}, subject.settings.batch_size)
        for number in batches_of(places, [batch.order for batch in batches]):
            with torch.inference_mode():
                losses = record_losses(subject.module, batches[number]).double().tolist()
            yield from ((place, [loss]) for place, loss in zip(batches[number].order, losses, strict=True))
            done(len(batches[number].order))

    keys = [derived_id(answer.ids, answer.prompt_length)[:12] for answer in answers]
    return [numbers[0] for numbers in journal.numbers(purpose, keys, measured)]
