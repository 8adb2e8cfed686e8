"""A transformers model in this process, answering in batches."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from mergekit_3h.data.backends.loading import (
    chosen_device,
    end_tokens,
    loaded,
    longest_sequence,
    uses_chat_template,
)
from mergekit_3h.data.backends.protocol import BackendError, Completion, Request, TokensUsed

if TYPE_CHECKING:  # settings open backends: an import from here would be a circle
    from mergekit_3h.data.backends.settings import TransformersSettings

log = logging.getLogger(__name__)


class TransformersBackend:
    """Answers batches of requests with a local causal language model.

    The checkpoint's own generation defaults (sampling, repetition penalty) are ignored except for its end tokens:
    temperature 0 is greedy for every model of a pool alike.
    """

    def __init__(self, settings: TransformersSettings, checkpoint: tuple[Any, Any] | None = None) -> None:
        """``checkpoint``: tokenizer and model that are in memory already; otherwise they are loaded."""
        import torch
        from transformers import GenerationConfig

        self.batch_size = settings.batch_size
        self._name = settings.model
        self._device = chosen_device(settings.device) if checkpoint is None else str(checkpoint[1].device)
        checkpoint = checkpoint or loaded(settings, self._device)
        self._tokenizer: Any = checkpoint[0]
        self._model: Any = checkpoint[1]
        self._own_generation_config: Any = self._model.generation_config
        self._end_tokens = end_tokens(self._model, self._tokenizer)
        self._longest = longest_sequence(self._model.config)
        self._model.generation_config = GenerationConfig()
        self._use_chat_template = uses_chat_template(settings, self._tokenizer)
        log.info("%s: on %s in %s", settings.model, self._device, str(self._model.dtype).removeprefix("torch."))
        self._out_of_memory = torch.OutOfMemoryError

    def complete(self, requests: Sequence[Request]) -> Iterator[Completion]:
        for start in range(0, len(requests), self.batch_size):
            yield from self._complete_batch(requests[start : start + self.batch_size])

    def close(self) -> None:
        import torch

        if self._model is not None:
            self._model.generation_config = self._own_generation_config  # someone else's model goes on as it was
        self._model = None
        if self._device.startswith("cuda"):
            torch.cuda.empty_cache()

    def _complete_batch(self, requests: Sequence[Request]) -> list[Completion]:
        encoded = [self._encode(request) for request in requests]
        prompts = {place: tokens for place, tokens in enumerate(encoded) if not isinstance(tokens, Completion)}
        asked = [self._within_room(requests[place], len(tokens)) for place, tokens in prompts.items()]
        replies = self._generate(list(prompts.values()), asked) if prompts else []
        answered = dict(zip(prompts, replies, strict=True))
        return [
            outcome if isinstance(outcome, Completion) else answered[place] for place, outcome in enumerate(encoded)
        ]

    def _encode(self, request: Request) -> list[int] | Completion:
        try:
            text, special = self._as_text(request)
        except Exception as error:  # a template is code of the checkpoint's author and raises what it likes
            return Completion(failure=f"the chat template rejects the messages: {error}")
        tokens: list[int] = self._tokenizer(text, add_special_tokens=special)["input_ids"]
        if not tokens:
            return Completion(failure="the prompt is empty")
        if self._longest is not None and len(tokens) >= self._longest:
            return Completion(failure=f"the prompt is too long: {len(tokens)} tokens, the model holds {self._longest}")
        return tokens

    def _within_room(self, request: Request, prompt_tokens: int) -> Request:
        """The request with no more new tokens than the model has room for after the prompt."""
        if self._longest is None:
            return request
        return replace(request, max_new_tokens=min(request.max_new_tokens, self._longest - prompt_tokens))

    def _as_text(self, request: Request) -> tuple[str, bool]:
        """The prompt as one text, and whether the tokenizer still has to add its special tokens."""
        if request.messages is not None and self._use_chat_template:
            messages = [dict(turn) for turn in request.messages]
            return self._tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True), False
        if request.messages is not None:
            return "\n\n".join(str(turn["content"]) for turn in request.messages), True
        raw = request.prompt or ""
        start = self._tokenizer.bos_token
        return raw, not (start and raw.startswith(start))

    def _generate(self, prompts: list[list[int]], requests: Sequence[Request]) -> list[Completion]:
        import torch
        from transformers import GenerationConfig, LogitsProcessorList, StoppingCriteriaList

        from mergekit_3h.data.backends.decoding import GumbelNoise, RowLimits

        width = max(map(len, prompts))
        padding = self._end_tokens[0] if self._end_tokens else 0
        rows = [[padding] * (width - len(tokens)) + tokens for tokens in prompts]
        mask = [[0] * (width - len(tokens)) + [1] * len(tokens) for tokens in prompts]
        config = GenerationConfig(
            do_sample=False,
            num_beams=1,
            max_new_tokens=max(request.max_new_tokens for request in requests),
            eos_token_id=self._end_tokens or None,
            pad_token_id=padding,
        )
        try:
            with torch.inference_mode():
                output = self._model.generate(
                    input_ids=torch.tensor(rows, device=self._device),
                    attention_mask=torch.tensor(mask, device=self._device),
                    generation_config=config,
                    logits_processor=LogitsProcessorList([GumbelNoise(requests)]),
                    stopping_criteria=StoppingCriteriaList([RowLimits(requests, width, self._tokenizer)]),
                )
        except self._out_of_memory:
            output = None
        if output is None:
            raise BackendError(
                f"{self._name}: {self._device} is out of memory with batch_size {self.batch_size} and prompts of "
                f"up to {width} tokens; lower batch_size"
            )
        produced: list[list[int]] = output[:, width:].tolist()
        return [
            self._decode(len(prompt), tokens, request)
            for prompt, tokens, request in zip(prompts, produced, requests, strict=True)
        ]

    def _decode(self, prompt_tokens: int, tokens: list[int], request: Request) -> Completion:
        from mergekit_3h.data.backends.decoding import before_stop

        own = tokens[: request.max_new_tokens]
        end = next((place for place, token in enumerate(own) if token in self._end_tokens), len(own))
        text: str = self._tokenizer.decode(own[:end], skip_special_tokens=True, clean_up_tokenization_spaces=False)
        reply = before_stop(text, request.stop)
        is_cut = end == request.max_new_tokens and reply == text
        return Completion(text=reply, tokens=TokensUsed(prompt_tokens, min(end + 1, len(own)), is_cut))
