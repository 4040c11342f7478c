"""Tests that act as another user."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

ROOT_ONLY = pytest.mark.skipif(os.geteuid() != 0, reason="takes root to set up")
NOBODY = 65534


@contextmanager
def acting_as_nobody() -> Iterator[None]:
    os.seteuid(NOBODY)
    try:
        yield
    finally:
        os.seteuid(0)
