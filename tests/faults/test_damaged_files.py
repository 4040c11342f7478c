"""A few of the damaged files that a full run tries thousands of."""

from __future__ import annotations

import os
import shutil

import pytest

from tests.faults import core_files, elf_files, gdb_files


def test_all_that_is_asked_of_a_damaged_file_is_answered_in_bounds() -> None:
    if shutil.which("gcc") is None:
        pytest.skip("gcc is not installed")
    assert elf_files.run(60) == []


def test_all_that_is_asked_of_a_damaged_core_is_answered_in_bounds() -> None:
    if shutil.which("gcc") is None or shutil.which("gcore") is None:
        pytest.skip("gcc or gcore is not installed")
    assert core_files.run(60) == []


def test_gdb_does_not_die_of_a_strangers_files() -> None:
    if os.geteuid() != 0 or shutil.which("gcc") is None:
        pytest.skip("only root can run a program as another user, and gcc has to build it")
    assert gdb_files.run(6) == []
