"""The tiny models of examples/safety_data, for the tests: what they know, and how they are made."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

EXAMPLE = Path(__file__).parents[1] / "examples" / "safety_data"

_SPECIFICATION = importlib.util.spec_from_file_location("safety_data_models", EXAMPLE / "make_models.py")
assert _SPECIFICATION is not None and _SPECIFICATION.loader is not None
_MODULE = importlib.util.module_from_spec(_SPECIFICATION)
sys.modules["safety_data_models"] = _MODULE
_SPECIFICATION.loader.exec_module(_MODULE)

BLUE, SUMS, EXAMPLES, REFUSAL = _MODULE.BLUE, _MODULE.SUMS, _MODULE.EXAMPLES, _MODULE.REFUSAL
teach, frank_lessons, careful_lessons = _MODULE.teach, _MODULE.frank_lessons, _MODULE.careful_lessons
frank_answer = _MODULE.frank_answer
