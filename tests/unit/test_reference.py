"""docs/reference.md says what the program does."""

import importlib.util
from pathlib import Path

GENERATOR = Path(__file__).parents[2] / "docs/generate_reference.py"


def test_reference_is_up_to_date() -> None:
    spec = importlib.util.spec_from_file_location("generate_reference", GENERATOR)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert module.TARGET.read_text() == module.reference(), "run `make docs`"
