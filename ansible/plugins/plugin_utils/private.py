# Copyright (c) 2026 the virtrace authors
# SPDX-License-Identifier: MIT
"""Files on the controller that their owner alone can read."""

from __future__ import annotations

import json
import os
from contextlib import contextmanager


def as_text(document):
    """Return a document as `virtrace --json` prints it, by which `virtrace fleet` knows it."""
    return (json.dumps(document, indent=2) + "\n").encode()


def content(path):
    """Return what is in a file; None if there is no such file."""
    try:
        with open(path, "rb") as file:
            return file.read()
    except FileNotFoundError:
        return None


def write(path, new):
    """Give a file its content."""
    with replaced(path) as beside, open(beside, "wb") as file:
        file.write(new)


@contextmanager
def replaced(path):
    """Within it, write an empty file; after it, that is the file. Missing folders are made."""
    folder = os.path.dirname(path)
    missing = []
    while folder and not os.path.isdir(folder):
        missing.append(folder)
        folder = os.path.dirname(folder)
    for each in reversed(missing):
        # Another host's worker may make the same one now.
        os.makedirs(each, 0o700, exist_ok=True)
    # With nothing there before it is whole.
    beside = f"{path}.part"
    os.close(os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o600))
    try:
        yield beside
        os.replace(beside, path)
    except BaseException:
        os.unlink(beside)
        raise
