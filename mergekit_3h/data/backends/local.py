"""A transformers model in this process, answering in batches."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from mergekit_3h.data.backends.protocol import BackendError, Completion, Request
from mergekit_3h.data.backends.settings import TransformersSettings

log = logging.getLogger(__name__)


class TransformersBackend:
    """Answers batches of requests with a local causal language model.

    The checkpoint's own generation defaults (sampling, repetition penalty) are ignored except for its end tokens:
    temperature 0 is greedy for every model of a pool alike.
    """

    def __init__(self, settings: TransformersSettings) -> None:
        import torch

        self.batch_size = settings.batch_size
        self._name = settings.model
        self._device = _device(settings.device)
        loaded = _load(settings, self._device)
        self._tokenizer: Any = loaded[0]
        self._model: Any = loaded[1]
        self._end_tokens = _end_tokens(self._model, self._tokenizer)
        self._longest = _longest_sequence(self._model.config)
        self._use_chat_template = _uses_chat_template(settings, self._tokenizer)
        self._forget_generation_defaults()
        log.info("%s: on %s in %s", settings.model, self._device, str(self._model.dtype).removeprefix("torch."))
        self._out_of_memory = torch.OutOfMemoryError

    def complete(self, requests: Sequence[Request]) -> Iterator[Completion]:
        for start in range(0, len(requests), self.batch_size):
            yield from self._complete_batch(requests[start : start + self.batch_size])

    def close(self) -> None:
        import torch

        self._model = None
        if self._device.startswith("cuda"):
            torch.cuda.empty_cache()

    def _complete_batch(self, requests: Sequence[Request]) -> list[Completion]:
        encoded = [self._encode(request) for request in requests]
        good = [place for place, tokens in enumerate(encoded) if isinstance(tokens, list)]
        completions = [tokens if isinstance(tokens, Completion) else Completion(text="") for tokens in encoded]
        if good:
            prompts = [tokens for tokens in encoded if isinstance(tokens, list)]
            texts = self._generate(prompts, [requests[place] for place in good])
            for place, text in zip(good, texts, strict=True):
                completions[place] = Completion(text=text)
        return completions

    def _encode(self, request: Request) -> list[int] | Completion:
        try:
            text, special = self._as_text(request)
        except Exception as error:  # a template is code of the checkpoint's author and raises what it likes
            return Completion(failure=f"the chat template rejects the messages: {error}")
        tokens: list[int] = self._tokenizer(text, add_special_tokens=special)["input_ids"]
        if not tokens:
            return Completion(failure="the prompt is empty")
        if self._longest is not None and len(tokens) + request.max_new_tokens > self._longest:
            return Completion(
                failure=f"the prompt has {len(tokens)} tokens; with {request.max_new_tokens} new ones that is more "
                f"than the {self._longest} the model can hold"
            )
        return tokens

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

    def _generate(self, prompts: list[list[int]], requests: Sequence[Request]) -> list[str]:
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
        return [self._decode(tokens, request) for tokens, request in zip(produced, requests, strict=True)]

    def _decode(self, tokens: list[int], request: Request) -> str:
        from mergekit_3h.data.backends.decoding import before_stop

        own = tokens[: request.max_new_tokens]
        end = next((place for place, token in enumerate(own) if token in self._end_tokens), len(own))
        text: str = self._tokenizer.decode(own[:end], skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return before_stop(text, request.stop)

    def _forget_generation_defaults(self) -> None:
        from transformers import GenerationConfig

        self._model.generation_config = GenerationConfig()


def _device(wanted: str) -> str:
    import torch

    if wanted == "auto":
        return "cuda:0" if torch.cuda.is_available() else "cpu"
    if wanted.startswith("cuda") and not torch.cuda.is_available():
        raise BackendError(f"device: got {wanted!r}, but torch sees no GPU here; use cpu or auto")
    return wanted


def _load(settings: TransformersSettings, device: str) -> tuple[Any, Any]:
    transformers: Any = import_module("transformers")
    source = str(Path(settings.model).expanduser())
    shared: dict[str, Any] = {"revision": settings.revision, "trust_remote_code": settings.trust_remote_code}
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(source, **shared)
        model = transformers.AutoModelForCausalLM.from_pretrained(source, dtype=settings.dtype, **shared)
        return tokenizer, model.to(device).eval()
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        reason = str(error).strip().splitlines() or [type(error).__name__]
    raise BackendError(f"model {settings.model}: cannot be loaded for generation on {device}: {reason[0]}")


def _end_tokens(model: Any, tokenizer: Any) -> list[int]:
    """Every token that ends an answer, wherever the checkpoint declares it (chat models often have two)."""
    tokens: list[int] = []
    for holder in (model.generation_config, model.config, tokenizer):
        declared: Any = getattr(holder, "eos_token_id", None)
        tokens += declared if isinstance(declared, list) else [] if declared is None else [declared]
    return list(dict.fromkeys(tokens))


def _longest_sequence(config: Any) -> int | None:
    longest = getattr(config.get_text_config(), "max_position_embeddings", None)
    return longest if isinstance(longest, int) and longest > 0 else None


def _uses_chat_template(settings: TransformersSettings, tokenizer: Any) -> bool:
    has_template = bool(getattr(tokenizer, "chat_template", None))
    if settings.template == "chat" and not has_template:
        raise BackendError(
            f"model {settings.model}: template is 'chat' but its tokenizer has no chat template; use plain"
        )
    return has_template and settings.template != "plain"
