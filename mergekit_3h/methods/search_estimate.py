"""What the search of a safety_merge config will cost, before it begins."""

from __future__ import annotations

from pathlib import Path

from mergekit.common import ModelReference
from mergekit.options import MergeOptions

from mergekit_3h.errors import ThreeHError
from mergekit_3h.lint.source import read_documents
from mergekit_3h.methods.safety_host import MergekitHost
from mergekit_3h.methods.safety_request import METHOD_NAME, read_request
from mergekit_3h.safety.estimate import SearchEstimate, estimate_search
from mergekit_3h.safety.merge import checked_problem


def estimated_searches(path: Path, device: str) -> list[SearchEstimate]:
    """One for each safety_merge of a file whose models are folders here: nothing is downloaded or merged for it.

    A search that its own checks refuse has none: the lint says why.
    """
    found: list[SearchEstimate] = []
    for document in read_documents(path.read_text(encoding="utf-8")):
        if document.config is None or document.config.merge_method != METHOD_NAME:
            continue
        try:
            request = read_request(document.config)
            if not all(_is_here(model) for model in request.models.values()):
                continue
            problem = checked_problem(MergekitHost(request, MergeOptions(device=device)))
        except ThreeHError:
            continue
        found.append(estimate_search(problem, device))
    return found


def _is_here(model: ModelReference) -> bool:
    return model.lora is None and Path(model.model.path).is_dir()
