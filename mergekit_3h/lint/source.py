"""From YAML text to configs: which kind it is, keys that mergekit would drop, and the line of every place."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import yaml
from pydantic import BaseModel, ValidationError

from mergekit_3h.lint.findings import Finding
from mergekit_3h.suggestions import did_you_mean

_WEIGHT_SUFFIXES = (".safetensors", ".bin", ".pt", ".pth", ".ckpt")


@dataclass
class Document:
    """One merge of a config file. ``config`` is None where it cannot be read; the findings say why."""

    kind: Literal["yaml", "pytorch"]
    raw: dict[str, Any]
    name: str | None = None
    config: Any = None
    lines: dict[str, int] = field(default_factory=dict)
    findings: list[Finding] = field(default_factory=list)

    def located(self, finding: Finding) -> Finding:
        """The finding with the line its place begins on."""
        where = finding.where
        while where and where not in self.lines:
            where = re.sub(r"(\.[^.\[\]]*|\[\d+\]|^[^.\[\]]*)$", "", where)
        place = f"{self.name}: {finding.where}" if self.name and finding.where else finding.where
        return replace(finding, line=finding.line or self.lines.get(where), where=place)


def read_documents(text: str) -> list[Document]:
    """All merges of a mergekit-yaml, mergekit-multi or mergekit-pytorch config."""
    try:
        nodes = [node for node in yaml.compose_all(text, Loader=yaml.SafeLoader) if node is not None]
        contents = [content for content in yaml.safe_load_all(text) if content is not None]
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        message = f"not readable as YAML: {getattr(error, 'problem', None) or error}"
        line = mark.line + 1 if mark else None
        return [Document("yaml", {}, findings=[Finding("error", "yaml", message, line=line)])]
    if not contents:
        return [Document("yaml", {}, findings=[Finding("error", "yaml", "the config is empty")])]
    documents = [_document(content, node) for content, node in zip(contents, nodes, strict=True)]
    _check_names(documents)
    return documents


def document_of(config: Any) -> Document:
    """A document for a config object that Python code made."""
    kind = "yaml" if hasattr(config, "slices") else "pytorch"
    return Document(kind, config.model_dump(mode="json", exclude_none=True), config=config)


def _document(content: Any, node: yaml.Node) -> Document:
    if not isinstance(content, dict):
        message = f"expected a mapping with merge_method and models, got {type(content).__name__}"
        return Document("yaml", {}, findings=[Finding("error", "yaml", message, line=node.start_mark.line + 1)])
    name = content.pop("name", None)
    document = Document("pytorch" if _is_raw(content) else "yaml", content, name=name)
    document.lines, duplicates = _line_numbers(node)
    document.findings += duplicates
    if "experts" in content and "models" not in content:
        message = "this is a config of mergekit-moe, which does not merge weights"
        document.findings.append(Finding("error", "other-tool", message, where="experts"))
        return document
    _parse(document, _aliased_keys(node))
    return document


def _is_raw(content: dict[str, Any]) -> bool:
    models = content.get("models")
    if not isinstance(models, list) or not models:
        return False
    paths = [entry.get("model") for entry in models if isinstance(entry, dict)]
    return bool(paths) and all(
        isinstance(path, str) and (path.endswith(_WEIGHT_SUFFIXES) or Path(path).is_file()) for path in paths
    )


def _parse(document: Document, aliased: set[str]) -> None:
    from mergekit_3h.lint.host_plan import MergeConfiguration, RawPyTorchMergeConfig

    Model = RawPyTorchMergeConfig if document.kind == "pytorch" else MergeConfiguration
    for key in set(document.raw) - set(Model.model_fields):
        if str(key).startswith("x-") or (key in aliased and not did_you_mean(key, Model.model_fields, "")):
            del document.raw[key]  # a block that only holds what aliases repeat
    document.findings += _unknown_keys(document.raw, Model, "", str(document.raw.get("merge_method", "")))
    try:
        document.config = Model.model_validate(document.raw)
    except ValidationError as error:
        document.findings += _shape_errors(error, document.raw)
    except RuntimeError as error:  # mergekit's own validators raise it, and pydantic lets it pass
        document.findings.append(Finding("error", "config", str(error)))


def _shape_errors(error: ValidationError, raw: Any) -> Iterator[Finding]:
    reported: set[str] = set()
    for problem in error.errors():
        where, value, in_parameters = "", raw, False
        for step in problem["loc"]:
            if isinstance(value, dict) and step in value:
                value, where = value[step], f"{where}.{step}" if where else str(step)
            elif isinstance(value, list) and isinstance(step, int) and step < len(value):
                value, where = value[step], f"{where}[{step}]"
            else:
                break
            in_parameters = in_parameters or step == "parameters"
        if problem["type"] == "missing":
            where = f"{where}.{problem['loc'][-1]}" if where else str(problem["loc"][-1])
        if where not in reported:
            reported.add(where)
            yield Finding("error", "config", _shape_message(problem, value, in_parameters), where=where)


def _shape_message(problem: Any, value: Any, in_parameters: bool) -> str:
    if problem["type"] == "missing" and not in_parameters:
        return "required, but it is not there"
    if in_parameters:
        expected = "a number, text, true or false, a list of them, or entries with value and filter"
        return f"got {value!r}, expected {expected}"
    return f"got {value!r}, {problem['msg'][0].lower()}{problem['msg'][1:]}"


def _unknown_keys(raw: Any, model: type[BaseModel], where: str, method: str) -> Iterator[Finding]:
    known = list(model.model_fields)
    for key, value in raw.items():
        place = f"{where}.{key}" if where else str(key)
        if key not in known:
            yield Finding(
                "error",
                "unknown-key",
                f"there is no key {key!r} here, mergekit would ignore it",
                where=place,
                advice=_key_advice(str(key), known, method),
            )
            continue
        for inner, inner_value, inner_place in _nested(model.model_fields[key].annotation, value, place):
            yield from _unknown_keys(inner_value, inner, inner_place, method)


def _key_advice(key: str, known: list[str], method: str) -> str:
    from mergekit_3h.lint.host_plan import methods_by_name

    known_method = methods_by_name().get(method)
    options = {parameter.name for parameter in known_method.spec.parameters} if known_method else set()
    if key in options and "parameters" in known:
        return "options of the merge method stand under parameters:"
    return did_you_mean(key, known, f"known here: {', '.join(known)}")


def _nested(annotation: Any, value: Any, where: str) -> Iterator[tuple[type[BaseModel], dict[str, Any], str]]:
    """The mappings inside ``value`` that pydantic would read as a model, each with that model."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        # A model reference may be text or a mapping, and mergekit's union types say nothing more about it.
        if isinstance(value, dict) and annotation.__name__ != "ModelReference":
            yield annotation, value, where
    elif get_origin(annotation) is list and isinstance(value, list):
        for index, entry in enumerate(value):
            yield from _nested(get_args(annotation)[0], entry, f"{where}[{index}]")
    elif get_origin(annotation) is dict and isinstance(value, dict):
        for key, entry in value.items():
            yield from _nested(get_args(annotation)[1], entry, f"{where}.{key}")
    else:
        models = [part for part in get_args(annotation) if part is not type(None)]
        if sum(isinstance(part, type) and issubclass(part, BaseModel) for part in models) <= 1:
            for part in models:
                yield from _nested(part, value, where)


def _aliased_keys(root: yaml.Node) -> set[str]:
    """The outermost keys with something in them that an alias repeats under another, as ``common: &common``."""
    if not isinstance(root, yaml.MappingNode):
        return set()
    inside = {str(key.value): {id(node) for node in _nodes(value)} for key, value in root.value}
    return {key for key, own in inside.items() if any(own & other for k, other in inside.items() if k != key)}


def _nodes(node: yaml.Node, depth: int = 0) -> Iterator[yaml.Node]:
    if depth > 20:  # an alias can make a node contain itself
        return
    yield node
    if isinstance(node, yaml.CollectionNode):
        for child in node.value:
            for part in child if isinstance(child, tuple) else (child,):
                yield from _nodes(part, depth + 1)


def _line_numbers(root: yaml.Node) -> tuple[dict[str, int], list[Finding]]:
    lines: dict[str, int] = {}
    duplicates: list[Finding] = []

    def walk(node: yaml.Node, where: str, depth: int) -> None:
        if depth > 20:  # an alias can make a node contain itself
            return
        if isinstance(node, yaml.SequenceNode):
            for index, child in enumerate(node.value):
                place = f"{where}[{index}]"
                lines[place] = child.start_mark.line + 1
                walk(child, place, depth + 1)
        elif isinstance(node, yaml.MappingNode):
            here: set[str] = set()
            for key, child in node.value:
                place = f"{where}.{key.value}" if where else str(key.value)
                line = key.start_mark.line + 1
                if str(key.value) in here:
                    message = f"the key {key.value!r} stands here twice, the first is ignored"
                    duplicates.append(Finding("error", "duplicate-key", message, where=place, line=line))
                here.add(str(key.value))
                lines[place] = line
                walk(child, place, depth + 1)

    walk(root, "", 0)
    return lines, duplicates


def _check_names(documents: list[Document]) -> None:
    names = [document.name for document in documents]
    for index, document in enumerate(documents):
        if document.name in names[:index]:
            what = f"the name {document.name!r}" if document.name else "no name"
            message = f"another merge of this file has {what} too"
            document.findings.append(Finding("error", "merge-name", message, advice="give each merge its own name:"))
