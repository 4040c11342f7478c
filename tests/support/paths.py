"""Where the tests find the checkout that they belong to, and the files that they read."""

from __future__ import annotations

from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
DATA = REPOSITORY / "tests" / "data"
DOCS = REPOSITORY / "docs"
