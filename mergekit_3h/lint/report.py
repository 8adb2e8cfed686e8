"""The whole lint of a config: every room's findings in one order, and the estimate."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mergekit_3h.errors import ModelError
from mergekit_3h.lint.architectures import architecture_findings
from mergekit_3h.lint.estimate import Estimate, estimate_merge
from mergekit_3h.lint.findings import SEVERITIES, Finding, Severity
from mergekit_3h.lint.host_plan import planned_tensors, resolved_tensors
from mergekit_3h.lint.models import NamedModel, model_findings, named_models, twin_findings
from mergekit_3h.lint.parameters import parameter_findings
from mergekit_3h.lint.planned import PlannedTensor
from mergekit_3h.lint.ranges import resolved_findings
from mergekit_3h.lint.roles import compared_models
from mergekit_3h.lint.source import Document, document_of, read_documents
from mergekit_3h.lint.structure import find_method, structure_findings
from mergekit_3h.lint.tensors import tensor_findings
from mergekit_3h.lint.tokenizers import tokenizer_findings
from mergekit_3h.lint.updates import update_findings
from mergekit_3h.lint.weights import weight_findings


@dataclass
class LintReport:
    """Findings, errors first, and one estimate for each merge of the file that could be planned."""

    findings: list[Finding] = field(default_factory=list)
    estimates: list[Estimate] = field(default_factory=list)

    def of(self, severity: Severity) -> list[Finding]:
        return [finding for finding in self.findings if finding.severity == severity]

    def as_dict(self) -> dict[str, Any]:
        return {
            "counts": {severity: len(self.of(severity)) for severity in SEVERITIES},
            "findings": [finding.as_dict() for finding in self.findings],
            "estimates": [estimate.as_dict() for estimate in self.estimates],
        }


def examine(source: Path | str | Any, *, deep: bool = False, estimate: bool = True, device: str = "cpu") -> LintReport:
    """Lint a config file, YAML text (a string with a line break) or a config object; see ``lint``."""
    documents, folder = _documents(source)
    made_here = frozenset(document.name for document in documents if document.name)
    report = LintReport()
    for document in documents:
        findings, plan, models = _examine_document(document, made_here, folder, deep)
        report.findings += [document.located(finding) for finding in findings]
        if estimate and plan and not any(finding.severity == "error" for finding in findings):
            report.estimates.append(estimate_merge(document.config, plan, models, device))
    report.findings.sort(key=lambda finding: (SEVERITIES.index(finding.severity), finding.line or 0))
    return report


def lint(source: Path | str | Any, *, deep: bool = False) -> list[Finding]:
    """Everything wrong with a config and its models, errors first; ``deep`` reads all weights too."""
    return examine(source, deep=deep, estimate=False).findings


def _documents(source: Path | str | Any) -> tuple[list[Document], Path | None]:
    if isinstance(source, str) and "\n" in source:
        return read_documents(source), None
    if isinstance(source, (str, Path)):
        try:
            return read_documents(Path(source).read_text(encoding="utf-8")), Path(source).resolve().parent
        except (OSError, UnicodeDecodeError) as error:
            raise ModelError(f"cannot read the config {source}: {error}") from error
    return [document_of(source)], None


def _examine_document(
    document: Document, made_here: frozenset[str], folder: Path | None, deep: bool
) -> tuple[list[Finding], list[PlannedTensor], list[NamedModel]]:
    findings, config = list(document.findings), document.config
    method_name = config.merge_method if config is not None else document.raw.get("merge_method")
    method, unknown = find_method(str(method_name)) if method_name else (None, [])
    findings += unknown
    if config is None:
        return findings, [], []
    if method is not None:
        spec_for = getattr(method, "spec_for", None)  # safety_merge: its options depend on what it combines with
        findings += parameter_findings(config, spec_for(config) if spec_for else method.spec)
        findings += structure_findings(config, method)
    models = named_models(config, made_here)
    findings += _findings_on_models(document, models, folder)
    if deep:
        findings += weight_findings(models)
        compared = compared_models(config)
        findings += update_findings([model for model in models if model.name not in compared])
    needs_others = any(name in made_here for name in _model_names(config))
    if needs_others or not all(model.is_whole for model in models) or _blocks_planning(findings):
        return findings, [], models
    plan, problems = planned_tensors(config, models)
    findings += problems
    findings += tensor_findings(config, plan, models)
    if not any(finding.severity == "error" for finding in findings):
        resolved, problems = resolved_tensors(config, models)
        findings += [*problems, *resolved_findings(config.merge_method, resolved)]
    return findings, plan, models


def _findings_on_models(document: Document, models: list[NamedModel], folder: Path | None) -> Iterator[Finding]:
    yield from model_findings(models, document.kind, folder)
    yield from twin_findings(models)
    if document.kind == "yaml":
        yield from architecture_findings(document.config, models)
        yield from tokenizer_findings(document.config, models)


def _model_names(config: Any) -> set[str]:
    from mergekit_3h.lint.places import parameter_groups

    groups = parameter_groups(config)
    return {str(place.model) for group in groups for place in group.inputs} | {str(group.base) for group in groups}


def _blocks_planning(findings: list[Finding]) -> bool:
    """Findings after which mergekit's planner could only repeat them in its own words, or would run foreign code."""
    structural = {"architecture", "layer-count", "layer-range", "model-config", "duplicate-model", "base-not-in-slice"}
    structural |= {"inputs", "file-as-folder", "folder-as-file"}
    return any(
        finding.rule == "remote-code" or (finding.severity == "error" and finding.rule in structural)
        for finding in findings
    )
