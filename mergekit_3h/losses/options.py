"""How a model is evaluated on records: options that search, audit and evaluation share."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field


class LossOptions(BaseModel):
    """How records become batches, and what the model that is given them computes in."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    batch_size: int = Field(8, ge=1, description="Records per forward pass.")
    max_length: int | None = Field(
        None, ge=2, description="Longest record in tokens; a longer one is an error. Unset: the models' context."
    )
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        "auto", description="Data type of the evaluated model; auto: that of the base's checkpoint."
    )
    chat_template: Literal["auto", "plain"] = Field(
        "auto",
        description="auto: the models' chat template, or plain if none of them has one; plain: the prompt, a line "
        "break, the response.",
    )
