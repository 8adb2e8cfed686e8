"""``inspect eval TASK --model mergekit-3h/WHAT``: a checkpoint, or a merge config of mergekit that is merged first.

The entry point of the group ``inspect_ai``. Importing this file imports nothing of inspect_ai; asking it for
``provider``, as inspect_ai does, registers the provider.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from mergekit_3h.errors import OptionError, ThreeHError
from mergekit_3h.optional import optional

PROVIDER = "mergekit-3h"


def __getattr__(name: str) -> Any:
    if name == "provider":
        return _provider()
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


@cache
def _provider() -> Any:
    from mergekit_3h.evaluation.inspect_ai_model import subject_api

    models = optional("inspect_ai.model", "inspect", "a model for inspect_ai")
    prerequisite = optional("inspect_ai._util.error", "inspect", "a model for inspect_ai").PrerequisiteError

    class NamedAPI(subject_api()):
        """Opened by its name. ``-M NAME=VALUE`` are the options of a model that runs in this process, and ``seed``."""

        def __init__(
            self,
            model_name: str,
            base_url: str | None = None,
            api_key: str | None = None,
            config: Any = None,
            **model_args: Any,
        ) -> None:
            try:
                subject = _opened(model_name, model_args)
            except ThreeHError as error:
                raise prerequisite(str(error)) from None  # which inspect_ai shows without a traceback
            super().__init__(subject, config or models.GenerateConfig())

    return models.modelapi(PROVIDER)(NamedAPI)


def _opened(model: str, given: Mapping[str, Any]) -> Any:
    from mergekit_3h.data.backends.settings import TransformersSettings
    from mergekit_3h.data.sections import parsed
    from mergekit_3h.evaluation.subject import subject_of

    options = dict(given)
    seed = options.pop("seed", None)
    settings = parsed(TransformersSettings, {**options, "model": model}, "-M")
    config = Path(model).expanduser()
    if config.suffix in (".yml", ".yaml"):
        return _merged(config, model, settings, seed)
    if seed is not None:
        raise OptionError(f"-M seed={seed}: is for a merge config; {model} is a checkpoint")
    return subject_of(model, settings, model)


def _merged(config: Path, name: str, settings: Any, seed: int | None) -> Any:
    """The merge as ``mergekit-yaml`` makes it, in memory; what it was read from is removed again."""
    import yaml

    from mergekit_3h.evaluation.subject import subject_of
    from mergekit_3h.lint import examine
    from mergekit_3h.methods.memory_merge import Merger

    if not config.is_file():
        raise OptionError(f"{config}: no such file; expected a merge config of mergekit, or the folder of a checkpoint")
    errors = [finding.message for finding in examine(config, estimate=False).of("error")]
    if errors:
        raise OptionError("\n".join([f"{config} has {len(errors)} error(s):", *errors]))
    with tempfile.TemporaryDirectory(prefix="mergekit-3h-") as folder:
        place = Path(folder) / "merged"
        source = config.read_text(encoding="utf-8")
        Merger(trust_remote_code=settings.trust_remote_code).write(yaml.safe_load(source), place, seed, source)
        subject = subject_of(str(place), settings, name)
        module = subject.module
    subject.load = lambda: module
    return subject
