"""What is wrong with a server's answer, and whether another try may help."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, cast

from mergekit_3h.data.backends.protocol import Completion
from mergekit_3h.data.backends.waiting import requested_wait

_WORTH_ANOTHER_TRY = {408, 409, 425, 429}
_SAME_FOR_EVERY_REQUEST = {401, 403, 404}


@dataclass(frozen=True)
class Trouble:
    """Why a try failed, and what that means for the next one."""

    reason: str
    again: bool = True
    hopeless: bool = False
    wait: float | None = None


def trouble_of(error: Exception, timeout: float) -> Trouble:
    """What an exception of the HTTP library means. Its classes differ between versions of huggingface_hub."""
    response = getattr(error, "response", None)
    status = getattr(response, "status_code", None)
    if isinstance(status, int):
        again = status in _WORTH_ANOTHER_TRY or status >= 500
        return Trouble(
            f"the server answers {status}: {_told_by(response) or error}",
            again=again,
            hopeless=status in _SAME_FOR_EVERY_REQUEST,
            wait=requested_wait(getattr(response, "headers", {})) if again else None,
        )
    if isinstance(error, TimeoutError) or "timeout" in type(error).__name__.lower():
        return Trouble(f"no answer within {timeout:g} s")
    if isinstance(error, (ValueError, TypeError, LookupError, AttributeError)):
        return Trouble(f"the answer is not a completion: {type(error).__name__}: {error}")
    return Trouble(f"no whole answer: {type(error).__name__}: {error}")


def _told_by(response: Any) -> str:
    """The message in an error response: OpenAI's ``{"error": {"message": ...}}``, FastAPI's ``detail``, or any text."""
    try:
        told: Any = json.loads(response.text)
    except Exception:  # a body that is missing, half read or no JSON
        told = getattr(response, "reason_phrase", "")
    while isinstance(told, dict):
        fields = cast("dict[str, Any]", told)
        told = next((fields[key] for key in ("error", "message", "detail") if fields.get(key)), str(fields))
    return told if isinstance(told, str) else str(told)


def text_of(output: Any, *path: str) -> Completion | Trouble:
    """The text at ``path`` in the first choice of a response that may be anything; its faults raise."""
    choices: Any = output["choices"]
    if not isinstance(choices, list) or not choices:
        return Trouble("the answer is not a completion: no choices")
    choice: Any = cast("list[Any]", choices)[0]
    text = choice
    for key in path:
        text = text[key]
    if not isinstance(text, str):
        return Trouble(f"the answer has no text: finish_reason {choice.get('finish_reason')!r}")
    return Completion(text=text)
