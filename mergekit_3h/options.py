"""Options out of plain values, as YAML, Hydra, a command line or Python hand them over.

Every option is declared once, as a pydantic field with name, default, validation and description; these functions read
such declarations. An error names the option, the value that was got and what it may be.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError, ValidationInfo

from mergekit_3h.errors import OptionError
from mergekit_3h.suggestions import did_you_mean

Declaration = TypeVar("Declaration", bound=BaseModel)


def option_names(declaration: type[BaseModel]) -> list[str]:
    """Every option under the name that users write: ``lambda``, where the field is ``lambda_``."""
    return [field.alias or name for name, field in declaration.model_fields.items()]


def parsed(declaration: type[Declaration], given: Mapping[str, Any], owner: str) -> Declaration:
    """The declared options from plain values. ``owner`` is whose they are, as "the search"."""
    for name in given:
        require_known(owner, name, option_names(declaration))
    return declaration(**{name: checked(declaration, name, value) for name, value in given.items()})


def require_known(owner: str, name: str, known: Iterable[str]) -> None:
    """Raise with a suggestion unless ``name`` is one of the options that ``owner`` has."""
    names = list(known)
    if name not in names:
        otherwise = f"it has: {', '.join(names)}"
        raise OptionError(f"{owner} has no option {name!r}; {did_you_mean(name, names, otherwise)}")


_ALONE = {"alone": True}


def is_alone(info: ValidationInfo) -> bool:
    """Whether one option is looked at by itself, so that a validator of all of them cannot know what is beside it."""
    return info.context == _ALONE


def checked(declaration: type[BaseModel], name: str, value: Any) -> Any:
    """``value`` as ``declaration`` stores its option ``name``, or an error in one sentence."""
    field_name = next(key for key, field in declaration.model_fields.items() if name in (key, field.alias))
    is_number = "float" in str(declaration.model_fields[field_name].annotation)
    try:
        if is_number and isinstance(value, bool):
            raise OptionError(f"option {name!r}: got {value!r}, expected a number")
        validated = declaration.model_validate({name: value}, context=_ALONE)
    except ValidationError as error:
        reason = error.errors()[0]["msg"]
        raise OptionError(f"option {name!r}: got {value!r}; {reason[0].lower()}{reason[1:]}") from None
    return getattr(validated, field_name)
