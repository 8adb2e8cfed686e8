"""Declared options as mergekit takes them: each checks its own values, in our words."""

from __future__ import annotations

from collections.abc import Collection
from functools import partial
from typing import Any

from mergekit.merge_methods.base import ParameterScope, ParameterSpec
from pydantic import BaseModel, PlainValidator
from typing_extensions import Annotated  # noqa: UP035 - mergekit compares with this one on Python 3.10

from mergekit_3h.methods.host_errors import HostError
from mergekit_3h.options import checked


def parameter_specs(
    method: str, declaration: type[BaseModel], scope: ParameterScope, refused_by_us: Collection[str] = ()
) -> list[ParameterSpec]:
    """The options of ``declaration``. Those ``refused_by_us`` are required, but mergekit is not told.

    Without a default mergekit would refuse a config in its own words.
    """

    def validate(name: str, value: Any) -> Any:
        if value is None and name in refused_by_us:
            return None
        try:
            return checked(declaration, name, value)
        except Exception as error:
            raise HostError(f"{method}: {error}") from None

    return [
        ParameterSpec(
            name=field.alias or key,
            value_type=Annotated[Any, PlainValidator(partial(validate, field.alias or key))],
            scope=scope,
            default=None if key in refused_by_us else field.default,
            description=field.description,
        )
        for key, field in declaration.model_fields.items()
    ]
