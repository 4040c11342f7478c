"""Where the benches put what they measured."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[1]
FOLDER = REPOSITORY / "out" / "bench"


def save(name: str, figures: dict[str, Any]) -> str:
    """As NAME.json. Where that is, as somebody in the checkout would type it."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    output = FOLDER / f"{name}.json"
    output.write_text(json.dumps(figures, indent=2) + "\n")
    return str(output.relative_to(REPOSITORY))
