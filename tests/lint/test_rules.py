"""Every rule of the lint is documented, and provoked by a test."""

from __future__ import annotations

import ast
import re
from pathlib import Path
from typing import get_args

import pytest
from lint.workshop import Workshop, only

import mergekit_3h.lint
from mergekit_3h.lint.findings import Rule

HERE = Path(__file__).parent


def provoked_rules(source: str) -> set[str]:
    """What the tests pass to ``only(findings, rule)`` and ``all_of``, which fail unless a finding is of that rule."""
    calls = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call) and len(node.args) == 2]
    asked = [call.args[1] for call in calls if ast.unparse(call.func) in ("only", "all_of", "rules_of")]
    return {value.value for value in asked if isinstance(value, ast.Constant)}


def test_a_rule_that_is_only_named_is_not_provoked() -> None:
    assert provoked_rules("assert not [f for f in lint(config) if f.rule == 'shape']") == set()
    assert provoked_rules("assert only(lint(config), 'shape').tensor == name") == {"shape"}


def test_a_rule_that_is_not_found_fails_its_test(llamas: Workshop) -> None:
    with pytest.raises(AssertionError):
        only(llamas.lint(llamas.config()), "shape")


@pytest.mark.parametrize("rule", get_args(Rule))
def test_rule_is_documented_and_provoked(rule: str) -> None:
    rows = re.findall(r"^\| (`.*?) \|", (HERE.parents[1] / "docs" / "check.md").read_text(), re.MULTILINE)
    assert rule in {name for row in rows for name in re.findall(r"`([a-z-]+)`", row)}
    assert any(rule in provoked_rules(file.read_text()) for file in HERE.glob("test_*.py"))


def test_one_file_of_the_lint_imports_mergekit() -> None:
    imports = re.compile(r"^\s*(?:from|import) mergekit[. ]", re.MULTILINE)
    files = Path(mergekit_3h.lint.__file__).parent.glob("*.py")
    assert [file.name for file in files if imports.search(file.read_text())] == ["host_plan.py"]
