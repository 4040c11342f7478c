"""The engine inside the real GDB, on a small program whose functions are named as libvirt's."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.gdb.harness import Daemon, Tracing, build_variant


@pytest.fixture(scope="session")
def build(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """A variant's folder, built when it is first asked for."""
    for command in ("gcc", "gdb", "strip"):
        if shutil.which(command) is None:
            pytest.skip(f"{command} is not installed")
    built: dict[str, Path] = {}

    def folder_of(variant: str) -> Path:
        if variant not in built:
            built[variant] = build_variant(tmp_path_factory.mktemp(variant), variant)
        return built[variant]

    return folder_of


@pytest.fixture(scope="session")
def daemons(build: Callable[[str], Path]) -> Iterator[Callable[[str], Daemon]]:
    """The one running program of a variant, shared by the tests that leave it running."""
    running: dict[str, Daemon] = {}

    def daemon_of(variant: str) -> Daemon:
        if variant in running and not running[variant].is_usable:
            running.pop(variant).end()
        if variant not in running:
            running[variant] = Daemon(build(variant))
        return running[variant]

    yield daemon_of
    for daemon in running.values():
        daemon.end()


@pytest.fixture(autouse=True)
def no_tracer_left() -> Iterator[None]:
    yield
    while Tracing.running:
        Tracing.running.pop().clean_up()


@pytest.fixture
def daemon(daemons: Callable[[str], Daemon]) -> Daemon:
    return daemons("optimized")


@pytest.fixture
def mortal(build: Callable[[str], Path]) -> Iterator[Daemon]:
    """A program of the test's own, which it may end."""
    daemon = Daemon(build("optimized"))
    yield daemon
    daemon.end()
