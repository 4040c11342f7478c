"""The YAML files that virtrace comes with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from virtrace import resources

# Ten times as fast, where PyYAML comes with its C library.
LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def document(file: Path) -> Any:
    """Return what a file says. Raises: OSError, yaml.YAMLError."""
    return parsed(resources.text(file))


def parsed(text: str) -> Any:
    """Return what the text of a file says. Raises: yaml.YAMLError."""
    return yaml.load(text, Loader=LOADER)
