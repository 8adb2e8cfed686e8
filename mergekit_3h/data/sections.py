"""What every section of a pipeline file is: an unknown key is an error with a suggestion, a secret is never echoed."""

from __future__ import annotations

from typing import Any, TypeVar, cast

from pydantic import BaseModel, ConfigDict, ValidationError, model_validator
from pydantic_core import PydanticCustomError

from mergekit_3h.errors import OptionError
from mergekit_3h.suggestions import did_you_mean

_LONGEST_QUOTE = 60
# What was got is in the message already, or may be a secret.
_UNQUOTED = {"unknown_key", "model_name", "not_a_variable", "credentials_in_url"}


class Section(BaseModel):
    """A part of a pipeline file."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=(), hide_input_in_errors=True)

    @model_validator(mode="before")
    @classmethod
    def _known_keys_only(cls, given: Any) -> Any:
        if isinstance(given, dict):
            keys = cast("dict[str, Any]", given)
            unknown = [str(key) for key in keys if key not in cls.model_fields]
            if unknown:
                hint = did_you_mean(unknown[0], cls.model_fields)
                raise PydanticCustomError("unknown_key", "no option '{key}'; {hint}", {"key": unknown[0], "hint": hint})
        return cast(Any, given)


AnySection = TypeVar("AnySection", bound=Section)


def parsed(section: type[AnySection], given: Any, where: str) -> AnySection:
    """``given`` as a section, or one error that lists all that is wrong with it and where."""
    try:
        return section.model_validate(given)
    except ValidationError as error:
        problems = [_problem(dict(details)) for details in error.errors(include_url=False)]
    raise OptionError(f"{where}:\n" + "\n".join(f"  {problem}" for problem in problems))


def _problem(details: dict[str, Any]) -> str:
    place = ".".join(str(step) for step in details["loc"]) or "(whole file)"
    message: str = details["msg"]
    if details["type"] == "missing":
        return f"{place}: required, but not given"
    value = details["input"]
    quotable = isinstance(value, (bool, int, float)) or (isinstance(value, str) and len(value) <= _LONGEST_QUOTE)
    got = f"got {value!r}; " if quotable and details["type"] not in _UNQUOTED else ""
    return f"{place}: {got}{message[0].lower()}{message[1:]}"
