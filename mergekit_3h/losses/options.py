"""How a model is evaluated on records: options that search, audit and evaluation share."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pydantic import BaseModel, ConfigDict, Field
from typing_extensions import Self

if TYPE_CHECKING:
    import torch


class LossOptions(BaseModel):
    """How records become batches, and what the model that is given them computes in."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    batch_size: int = Field(8, ge=1, description="Records per forward pass.")
    max_length: int | None = Field(
        None, ge=2, description="Longest record in tokens; a longer one is an error. Unset: the models' context."
    )
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        "auto",
        description="Data type of the evaluated model; auto: that of the checkpoint, but on a CPU float32, unless "
        "bfloat16 was measured to be faster there.",
    )
    chat_template: Literal["auto", "plain"] = Field(
        "auto",
        description="auto: the models' chat template, or plain if none of them has one; plain: the prompt, a line "
        "break, the response.",
    )

    def settled(self, stored: torch.dtype | Path | None, device: str) -> Self:
        """With the data type that is computed in on ``device``, where that was left open.

        ``stored`` is that of the weights, or the checkpoint's folder. So a trace says what was computed in, and a
        search goes on in no other.
        """
        from mergekit_3h.checkpoints.precision import settled_precision, stored_dtype

        if self.dtype != "auto":
            return self
        found = stored_dtype(stored) if isinstance(stored, Path) else stored
        return self.model_copy(update={"dtype": settled_precision("auto", found, device).dtype})
