"""A tiny trained base, an aligned and a misaligned expert, their data, and configs that search the weights of both."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from search.training import compliant_records, domain_records, safety_records, train, write_jsonl
from single_thread import one_thread  # noqa: F401
from tiny_models import tiny_model, tiny_tokenizer


@dataclass(frozen=True)
class Trained:
    """``aligned`` refuses, ``domain`` knows the domain and has unlearned to refuse."""

    base: Path
    aligned: Path
    domain: Path
    data: Path

    def config(self, **parameters: Any) -> dict[str, Any]:
        """A safety_merge config; every option of the search may be given."""
        return {
            "merge_method": "safety_merge",
            "base_model": str(self.base),
            "models": [{"model": str(self.aligned)}, {"model": str(self.domain)}],
            "parameters": {"data": str(self.data), **parameters},
        }


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    root = tmp_path_factory.mktemp("safety").resolve()
    base = tiny_model("llama", seed=1)
    train(base, [*safety_records(held_out=True), *domain_records(), *compliant_records()], 25)
    start = {name: tensor.clone() for name, tensor in base.state_dict().items()}
    courses = {
        "base": [],
        "aligned": safety_records(held_out=True),
        "domain": [*domain_records(), *compliant_records()],
    }
    for label, course in courses.items():
        base.load_state_dict(start)
        if course:
            train(base, course, 40, 1e-3)
        base.save_pretrained(root / label)
        tiny_tokenizer().save_pretrained(root / label)
    data = write_jsonl(root / "data.jsonl", [*safety_records(), *domain_records()])
    return Trained(root / "base", root / "aligned", root / "domain", data)


@pytest.fixture
def changed(trained: Trained, tmp_path: Path) -> Callable[..., dict[str, Any]]:
    """A config whose expert ``domain`` is a changed copy of itself."""
    import shutil

    def change(how: Callable[[Path], object], **parameters: Any) -> dict[str, Any]:
        folder = tmp_path.resolve() / "changed"
        shutil.copytree(trained.domain, folder)
        how(folder)
        config = trained.config(**parameters)
        config["models"][1]["model"] = str(folder)
        return config

    return change
