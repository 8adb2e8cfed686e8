"""Opening a checkpoint: its device, weights, tokenizer, and what it says about itself."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mergekit_3h.checkpoints.opening import load_model, loading_bars_on_terminals
from mergekit_3h.checkpoints.precision import settled_precision
from mergekit_3h.data.backends.protocol import BackendError
from mergekit_3h.errors import ModelError

if TYPE_CHECKING:  # settings open backends: an import from here would be a circle
    from mergekit_3h.data.backends.settings import TransformersSettings


def chosen_device(wanted: str) -> str:
    """The device for an option; auto is the first GPU if there is one."""
    import torch

    if wanted == "auto":
        return "cuda:0" if torch.cuda.is_available() else "cpu"
    if wanted.startswith("cuda") and not torch.cuda.is_available():
        raise BackendError(f"device: got {wanted!r}, but torch sees no GPU here; use cpu or auto")
    number = wanted.partition(":")[2]
    if number.isdigit() and wanted.startswith("cuda") and int(number) >= torch.cuda.device_count():
        raise BackendError(f"device: got {wanted!r}, but torch sees only {torch.cuda.device_count()} GPUs here")
    return wanted


def loaded(settings: TransformersSettings, device: str) -> tuple[Any, Any]:
    """Tokenizer and model of a checkpoint."""
    transformers: Any = import_module("transformers")
    source = str(Path(settings.model).expanduser())
    shared: dict[str, Any] = {"revision": settings.revision, "trust_remote_code": settings.trust_remote_code}
    try:
        with loading_bars_on_terminals():
            tokenizer = transformers.AutoTokenizer.from_pretrained(source, **shared)
            stored = getattr(transformers.AutoConfig.from_pretrained(source, **shared), "dtype", None)
            dtype = settled_precision(settings.dtype, stored, device).dtype
        model = load_model(source, dtype, device, settings.trust_remote_code, settings.revision)
        return tokenizer, model.eval()
    except ModelError as error:
        raise BackendError(str(error)) from error
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        reason = str(error).strip().splitlines() or [type(error).__name__]
    raise BackendError(f"model {settings.model}: cannot be loaded for generation on {device}: {reason[0]}")


def end_tokens(model: Any, tokenizer: Any) -> list[int]:
    """Every token that ends an answer, wherever the checkpoint declares it (chat models often have two)."""
    tokens: list[int] = []
    for holder in (model.generation_config, model.config, tokenizer):
        declared: Any = getattr(holder, "eos_token_id", None)
        tokens += declared if isinstance(declared, list) else [] if declared is None else [declared]
    return list(dict.fromkeys(tokens))


def longest_sequence(config: Any) -> int | None:
    """How many tokens a model can hold; None if it does not say."""
    longest = getattr(config.get_text_config(), "max_position_embeddings", None)
    return longest if isinstance(longest, int) and longest > 0 else None


def uses_chat_template(settings: TransformersSettings, tokenizer: Any) -> bool:
    """Whether messages go through the chat template."""
    has_template = bool(getattr(tokenizer, "chat_template", None))
    if settings.template == "chat" and not has_template:
        raise BackendError(
            f"model {settings.model}: template is 'chat' but its tokenizer has no chat template; use plain"
        )
    return has_template and settings.template != "plain"
