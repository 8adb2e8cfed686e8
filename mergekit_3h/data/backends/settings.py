"""Options of the two backends, and how a backend is opened from them."""

from __future__ import annotations

import os
import re
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any, Literal, cast
from urllib.parse import urlparse

from pydantic import Discriminator, Field, Tag, field_validator
from pydantic_core import PydanticCustomError

from mergekit_3h.data.backends.protocol import Backend, BackendError
from mergekit_3h.data.sections import Section

_VARIABLE_NAME = re.compile(r"[A-Z][A-Z0-9_]*")


class TransformersSettings(Section):
    """A model that runs in this process."""

    kind: Literal["transformers"] = Field("transformers", description="A model that runs in this process.")
    model: str = Field(description="Folder of the checkpoint, or its name on the Hugging Face hub.")
    revision: str | None = Field(None, description="Revision on the hub.")
    device: str = Field("auto", description="cpu, cuda, cuda:1, ...; auto is the first GPU if there is one.")
    dtype: Literal["auto", "bfloat16", "float16", "float32"] = Field(
        "auto",
        description="Number format of the weights; auto is the checkpoint's own, but on a CPU float32, unless "
        "bfloat16 was measured to be faster there.",
    )
    batch_size: int = Field(8, ge=1, description="Requests computed together. Lower it when memory runs out.")
    template: Literal["auto", "chat", "plain"] = Field(
        "auto",
        description="chat: the tokenizer's chat template; plain: the turns' texts, separated by blank lines; "
        "auto: chat if the tokenizer has a template.",
    )
    trust_remote_code: bool = Field(False, description="Run Python code that comes with the checkpoint.")

    def identity(self) -> dict[str, Any]:
        """What the answers depend on; anything else may change between a run and its continuation."""
        return self.model_dump(include={"model", "revision", "dtype", "template"})

    def check(self, name: str) -> None:
        """Raise if this model cannot be opened, as far as that can be told without loading its weights."""
        if self.device.startswith("cuda"):
            from mergekit_3h.data.backends.loading import chosen_device

            chosen_device(self.device)
        folder = Path(self.model).expanduser()
        looks_local = self.model.startswith((".", "/", "~")) or folder.exists()
        if looks_local and not (folder / "config.json").is_file():
            found = "a folder without config.json" if folder.is_dir() else "no such folder"
            raise BackendError(
                f"model {name!r}: {self.model} is {found}; expected a checkpoint folder or a name on the hub"
            )
        if not looks_local:
            self._check_hub(name)

    def _check_hub(self, name: str) -> None:
        hub: Any = import_module("huggingface_hub")
        try:
            hub.hf_hub_download(self.model, "config.json", revision=self.revision)
            return
        except Exception as error:  # no such name, no network, no access, not in the cache: each has its own class
            reason = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise BackendError(
            f"model {name!r}: {self.model} is no folder here, and the hub has no config.json for it: {reason}"
        )

    def open(self) -> Backend:
        from mergekit_3h.data.backends.local import TransformersBackend

        return TransformersBackend(self)


class ServerSettings(Section):
    """A model behind an OpenAI-compatible server (vLLM, TGI, llama.cpp, ``transformers serve``)."""

    kind: Literal["server"] = Field("server", description="A model behind an OpenAI-compatible server.")
    base_url: str = Field(description="Address of the server, with or without /v1.")
    model: str = Field(description="The name the server knows the model by; sent with every request.")
    api_key_env: str | None = Field(
        None,
        description="Name of the environment variable with the API key. The key itself is stored nowhere.",
    )
    concurrency: int = Field(4, ge=1, le=100, description="Requests under way at the same time.")
    timeout: float = Field(
        120.0, gt=0.0, description="Seconds to wait for the server's next byte before a try counts as failed."
    )
    retries: int = Field(5, ge=0, description="Further tries after the first, for each request.")
    first_wait: float = Field(
        1.0, ge=0.0, description="Seconds before the first retry; doubled each time, with jitter."
    )
    longest_wait: float = Field(
        60.0, ge=0.0, description="Longest wait in seconds. A server that asks for more fails the request."
    )
    give_up_after: int = Field(
        20, ge=1, description="Stop the run when so many requests in a row failed after all their tries."
    )

    @field_validator("base_url")
    @classmethod
    def _plain_address(cls, url: str) -> str:
        parts = urlparse(url)
        if parts.username or parts.password or parts.query:
            message = "an address with credentials or a query in it; name the key's variable in api_key_env instead"
            raise PydanticCustomError("credentials_in_url", message)
        if parts.scheme not in ("http", "https") or not parts.netloc:
            raise PydanticCustomError("not_an_address", "expected an address like http://127.0.0.1:8000/v1")
        return url

    @field_validator("api_key_env")
    @classmethod
    def _name_not_key(cls, name: str | None) -> str | None:
        if name is not None and not _VARIABLE_NAME.fullmatch(name):
            message = (
                "expected the name of an environment variable (capitals, digits, underscores), not a key; "
                "what was given is not repeated here, in case it is one"
            )
            raise PydanticCustomError("not_a_variable", message)
        return name

    def identity(self) -> dict[str, Any]:
        """What the answers depend on; anything else may change between a run and its continuation."""
        return self.model_dump(include={"model"})

    def check(self, name: str) -> None:
        """Raise unless the key, if one is needed, is there, and requests are allowed at all."""
        if self.api_key_env is not None and not os.environ.get(self.api_key_env):
            raise BackendError(
                f"model {name!r}: the environment variable {self.api_key_env} (api_key_env) is not set; "
                "expected it to hold the API key"
            )
        from huggingface_hub.constants import HF_HUB_OFFLINE

        if HF_HUB_OFFLINE:
            raise BackendError(
                f"model {name!r}: HF_HUB_OFFLINE is set, and huggingface_hub then refuses every request, also "
                f"one to {self.base_url}; unset it (or TRANSFORMERS_OFFLINE, which means the same) to use a server"
            )

    def open(self) -> Backend:
        from mergekit_3h.data.backends.server import ServerBackend

        return ServerBackend(self)


def _kind(given: Any) -> str | None:
    if isinstance(given, dict):
        options = cast("dict[str, Any]", given)
        return options.get("kind") or ("server" if "base_url" in options else "transformers")
    return getattr(given, "kind", None)


BackendSettings = Annotated[
    Annotated[TransformersSettings, Tag("transformers")] | Annotated[ServerSettings, Tag("server")],
    Discriminator(_kind),
]
"""Either kind; ``kind`` may be left out, since only a server has a ``base_url``."""
