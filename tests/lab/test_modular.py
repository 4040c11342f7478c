"""The daemons of hosts where each driver has one of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.lab.test_matrix import PRIVATE
from tests.support.paths import REPOSITORY

pytestmark = [
    pytest.mark.matrix,
    pytest.mark.skipif(os.geteuid() != 0, reason="a PID namespace takes root"),
]

SECONDS = 300.0


def test_modular_daemons() -> None:
    """Where the daemons of other tests, and those of this host, are not to be seen."""
    command = [PRIVATE[0], "--mount-proc", *PRIVATE[1:], sys.executable, "-m", "pytest"]
    done = subprocess.run(
        [*command, "-p", "no:cacheprovider", Path(__file__).with_name("modular.py")],
        cwd=REPOSITORY,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=SECONDS,
    )
    if done.returncode != 0:
        pytest.fail(f"in a PID namespace of its own:\n{done.stdout}", pytrace=False)
