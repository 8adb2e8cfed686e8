"""Every rule of the lint is documented, and provoked by a test."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

import mergekit_3h.lint as lint_package

HERE = Path(__file__).parent
SOURCES = sorted(Path(lint_package.__file__).parent.glob("*.py"))


def declared_rules() -> set[str]:
    """Second argument of every ``Finding(...)``, or what the variable in its place is set to."""
    rules: set[str] = set()
    for source in SOURCES:
        tree = ast.parse(source.read_text())
        names = [
            node for node in ast.walk(tree) if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "rule"
        ]
        calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call) and ast.unparse(node.func) == "Finding"]
        values = [node.value for node in names] + [node.args[1] for node in calls if len(node.args) > 1]
        for value in values:
            rules |= {
                part.value for part in ast.walk(value) if isinstance(part, ast.Constant) and isinstance(part.value, str)
            }
    return rules


def test_the_rules_are_found() -> None:
    assert {"unknown-option", "base-as-expert", "vocabulary", "missing-option"} <= declared_rules()


@pytest.mark.parametrize("rule", sorted(declared_rules()))
def test_rule_is_documented_and_tested(rule: str) -> None:
    documented = re.findall(r"`([a-z-]+)`", (HERE.parents[1] / "docs" / "check.md").read_text())
    assert rule in documented
    assert any(f'"{rule}"' in file.read_text() for file in HERE.glob("test_check_*.py"))
