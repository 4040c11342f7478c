"""A target for libFuzzer, by atheris: what it finds new ways through is read, or refused.

fuzz_recipe.py FOLDER... [-runs=N]: with the files of the folders to begin with.
"""

from __future__ import annotations

import sys
import time
from contextlib import suppress

import atheris

with atheris.instrument_imports(include=["virtrace.recipe"]):
    from virtrace.errors import RecipeError
    from virtrace.recipe import path, prototype
    from virtrace.recipe.loader import loads


# Of processor time: libFuzzer's own limit goes by the clock, which others slow down.
SECONDS = 5.0


def try_one(data: bytes) -> None:
    """Anything but a refusal, in good time, is a traceback, which ends the run."""
    began = time.process_time()
    with suppress(RecipeError):
        loads(data, "r.yaml")
    text = data.decode("utf-8", "replace")
    for parse in (path.parse_path, prototype.parse_prototype, prototype.parse_parameters):
        with suppress(ValueError):
            parse(text)
    assert time.process_time() - began < SECONDS


if __name__ == "__main__":
    atheris.Setup(sys.argv, try_one)
    atheris.Fuzz()
