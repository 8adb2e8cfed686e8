"""One record of safety or domain data, and what is wrong with a line that is not one.

A record is a prompt (or a conversation that ends with the user's turn), the reply if there is one yet, and
the set it belongs to. ``label`` is a verdict on the reply.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, cast

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator
from pydantic_core import ErrorDetails, PydanticCustomError

from mergekit_3h.data.text import normalised_text
from mergekit_3h.errors import ThreeHError
from mergekit_3h.suggestions import did_you_mean

SetName = Literal["safety", "domain", "overrefusal"]
Label = Literal["safe", "unsafe", "refusal", "compliance"]
Role = Literal["system", "user", "assistant"]

_LONGEST_QUOTE = 60


class DataError(ThreeHError):
    """Data on disk is not what was expected: a bad line, an unknown format, a store in use."""


class Message(BaseModel):
    """One turn of a conversation."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    role: Role
    content: str


class Record(BaseModel):
    """A prompt, perhaps its reply, and the set they belong to. Unknown keys are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    id: str = Field("", coerce_numbers_to_str=True, description="Unique name; derived from the content if absent.")
    prompt: str | None = Field(default=None, description="What the user asks. Either this or messages.")
    messages: tuple[Message, ...] | None = Field(
        default=None,
        description="The conversation so far, ending with the user's turn. Either this or prompt.",
    )
    response: str | None = Field(default=None, description="The reply; absent while there is none.")
    set: SetName = Field(description="Which set the record belongs to.")
    label: Label | None = Field(default=None, description="The verdict on the reply; absent if unscored.")
    category: str | None = Field(default=None, description="Harm category, domain or topic.")
    source: str | None = Field(default=None, description="Where it comes from: a data set, or the model that replied.")
    weight: float = Field(default=1.0, ge=0.0, allow_inf_nan=False, description="Factor on this record's loss.")

    @field_validator("prompt")
    @classmethod
    def _prompt_says_something(cls, prompt: str | None) -> str | None:
        if prompt is not None and not prompt.strip():
            raise PydanticCustomError("blank", "expected some text, got a blank one")
        return prompt

    @field_validator("messages")
    @classmethod
    def _messages_end_with_user(cls, messages: tuple[Message, ...] | None) -> tuple[Message, ...] | None:
        if messages is None:
            return None
        if not messages:
            raise PydanticCustomError("no_messages", "expected at least one message, got none")
        if messages[-1].role != "user":
            message = "the last message must be the user's; the assistant's last reply goes into 'response'"
            raise PydanticCustomError("last_message", message)
        if not messages[-1].content.strip():
            raise PydanticCustomError("blank", "expected some text in the user's last message, got a blank one")
        return messages

    @model_validator(mode="before")
    @classmethod
    def _one_of_prompt_and_messages(cls, given: Any) -> Any:
        if not isinstance(given, dict):
            return given
        keys = cast("dict[str, Any]", given)
        present = [name for name in ("prompt", "messages") if keys.get(name) is not None]
        if len(present) != 1:
            got = "both" if present else "neither"
            message = "expected exactly one of 'prompt' and 'messages', got {got}"
            raise PydanticCustomError("prompt_or_messages", message, {"got": got})
        return keys

    @model_validator(mode="after")
    def _derive_id(self) -> Record:
        if not self.id:
            turns = [(turn.role, turn.content) for turn in self.messages or ()]
            derived = derived_id(self.set, self.prompt, turns, self.response, self.source)
            object.__setattr__(self, "id", derived)
        return self

    @property
    def question(self) -> str:
        """What the user asks last."""
        return self.chat()[-1]["content"]

    @cached_property
    def normalised(self) -> str:
        """The conversation (without the reply) as ``normalised_text``: equal for exact duplicates."""
        turns = [self.prompt] if self.prompt is not None else [turn.content for turn in self.messages or ()]
        return normalised_text("\n".join(turns))

    def chat(self, with_response: bool = False) -> list[dict[str, str]]:
        """The conversation as chat templates and servers take it, the reply last if wanted and there."""
        if self.prompt is not None:
            turns = [{"role": "user", "content": self.prompt}]
        else:
            turns = [{"role": turn.role, "content": turn.content} for turn in self.messages or ()]
        if with_response and self.response is not None:
            turns.append({"role": "assistant", "content": self.response})
        return turns

    def changed(self, **changes: Any) -> Record:
        """A validated copy with some fields changed. The id stays unless it is among the changes."""
        return Record.model_validate({**self.model_dump(exclude_unset=True), "id": self.id, **changes})


def derived_id(*parts: object) -> str:
    """A stable id of 20 hexadecimal digits from JSON-able parts (80 bits: collisions do not happen)."""
    canonical = json.dumps(parts, ensure_ascii=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()[:20]


@dataclass(frozen=True)
class LineProblem:
    """What is wrong with one field of one line."""

    line: int
    field: str
    message: str

    def __str__(self) -> str:
        return f"line {self.line}, field {self.field!r}: {self.message}"


def problems_of(error: ValidationError, line: int, known_fields: Iterable[str] = ()) -> list[LineProblem]:
    """One problem for each field that pydantic rejected in a line."""
    return [_problem(details, line, list(known_fields)) for details in error.errors(include_url=False)]


def _problem(details: ErrorDetails, line: int, known_fields: list[str]) -> LineProblem:
    field, message, kind = _field_path(details["loc"]), details["msg"], details["type"]
    if kind == "json_invalid":
        return LineProblem(line, "(whole line)", f"not JSON: {message.removeprefix('Invalid JSON: ')}")
    if kind == "prompt_or_messages":
        return LineProblem(line, "prompt/messages", message)
    if kind == "missing":
        return LineProblem(line, field, "required, but the line has none")
    if kind == "extra_forbidden":
        hint = did_you_mean(field, known_fields, otherwise="")
        return LineProblem(line, field, f"no such field{'; ' if hint else ''}{hint}")
    got = repr(details["input"])
    shown = got if len(got) <= _LONGEST_QUOTE else got[:_LONGEST_QUOTE] + "..."
    return LineProblem(line, field or "(whole line)", f"got {shown}; {message[0].lower()}{message[1:]}")


def _field_path(location: tuple[int | str, ...]) -> str:
    path = "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in location)
    return path.lstrip(".")
