"""What `recipe new` makes of a declaration, and where `--against` finds the files."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.toolchain import build
from virtrace.binary.dwarf import Declared
from virtrace.cli.main import main
from virtrace.cli.new_recipe import captures, prototype_of
from virtrace.errors import TargetError
from virtrace.recipe import path, prototype
from virtrace.targets import LIBVIRT
from virtrace.targets.libvirt import public_api
from virtrace.targets.processes import installed


@pytest.mark.parametrize(
    ("declared", "enter", "exit_"),
    [
        ("void f(void)", {}, {}),
        ("int f(virConnectPtr conn, unsigned int flags)", {"flags": "flags"}, {"result": "return"}),
        (
            "char *f(virDomainPtr dom, const char *disk)",
            {"domain": "dom->name", "disk": "disk"},
            {"result": "return"},
        ),
        (
            "int f(virDomainInfoPtr info, int *state, char **xml, bool *on)",
            {},
            {"result": "return", "info": "*info", "state": "*state", "xml": "*xml", "on": "*on"},
        ),
        (
            "void f(virTypedParameterPtr params, int *nparams)",
            {},
            {"params": "typed(params, nparams)", "nparams": "*nparams"},
        ),
        (
            "void f(virTypedParameterPtr params, int nparams)",
            {"params": "typed(params, nparams)", "nparams": "nparams"},
            {},
        ),
        (
            "int f(virDomainStatsRecordPtr **stats)",
            {},
            {"result": "return", "stats": "records(stats, return)"},
        ),
        # Buffers, structs of unknown layout, and what must not be kept.
        ("void f(unsigned char *uuid, void *p, virNetworkPtr net, virDomainPtr *all)", {}, {}),
        ("int f(const char *password)", {}, {"result": "return"}),
        ("virUnknownStruct f(virAnother one)", {}, {}),
    ],
)
def test_what_is_captured(declared: str, enter: dict[str, str], exit_: dict[str, str]) -> None:
    assert captures(prototype.parse_prototype(declared)) == (enter, exit_)


@pytest.mark.parametrize(
    ("declared", "expected"),
    [
        (Declared("f", "int", [("virDomainObj *", "vm"), ("bool", "b")]),
         "int f(virDomainObj *vm, bool b)"),
        (Declared("f", "void", [("unnamed at 0x1f *", "call"), ("int", "n")]),
         "void f(void *call, int n)"),
        # A register of another kind; an argument that has no name.
        (Declared("f", "int", [("int", "n"), ("double", "x"), ("int", "m")]), "int f(int n)"),
        (Declared("f", "int", [("int", ""), ("int", "m")]), "int f(void)"),
        (Declared("f", "virUnknown", [("int", "n")]), "void f(void)"),
    ],
)  # fmt: skip
def test_what_debug_info_declares(declared: Declared, expected: str) -> None:
    found = prototype_of(declared)
    assert str(found) == expected
    assert prototype.parse_prototype(expected) == found


def test_the_public_api_can_be_written_and_read_again() -> None:
    functions = public_api.functions()
    assert len(functions) > 500
    for name, declared in functions.items():
        assert declared.name == name
        assert prototype.parse_prototype(str(declared)) == declared
        for captured in captures(declared):
            for text in captured.values():
                path.parse_path(text)


LIBRARY = "libvirt.so.0.9000.0"


@pytest.fixture
def library(tmp_path: Path) -> Path:
    return build("int f;", tmp_path / "built.so", "-shared", "-nostdlib")


def laid_out(library: Path, *files: Path) -> None:
    for file in files:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(library.read_bytes())
        if file.name == LIBRARY:
            (file.parent / "libvirt.so.0").symlink_to(LIBRARY)


def test_files_of_an_installation(library: Path, tmp_path: Path) -> None:
    lib = tmp_path / "usr/lib/x86_64-linux-gnu"
    driver = lib / "libvirt/connection-driver/libvirt_driver_qemu.so"
    daemon = tmp_path / "usr/sbin/libvirtd"
    laid_out(library, lib / LIBRARY, driver, daemon)
    for binary in (lib / LIBRARY, lib / "libvirt.so.0", driver, daemon):
        process = installed(binary)
        assert [module.path for module in process.modules] == [str(lib / LIBRARY), str(driver)]
        assert LIBVIRT.version_of(process) == "9.0.0"
        # As they must be in a process: apart from each other.
        first, second = process.modules
        assert first.end <= second.start


def test_files_of_a_build(library: Path, tmp_path: Path) -> None:
    """All in one folder."""
    files = [tmp_path / name for name in (LIBRARY, "libvirt_driver_qemu.so", "libvirtd")]
    laid_out(library, *files)
    for binary in files:
        names = [module.name for module in installed(binary).modules]
        assert names == [LIBRARY, "libvirt_driver_qemu.so"]


def test_what_is_no_part_of_libvirt(library: Path, tmp_path: Path) -> None:
    laid_out(library, tmp_path / "alone/libvirt_driver_qemu.so", tmp_path / "other.so")
    for name, what in (
        ("other.so", "is not part of libvirt or QEMU by its name"),
        ("libvirtd", "No such file"),
        ("alone/libvirt_driver_qemu.so", "there is no libvirt.so.0 beside"),
    ):
        with pytest.raises(TargetError, match=what):
            installed(tmp_path / name)


@pytest.mark.parametrize("action", [["new", "virDomainGetInfo"], ["check", "blockinfo"]])
def test_the_command_says_so(
    action: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["recipe", *action, "--against", str(tmp_path / "libvirtd")]) == 3
    assert "No such file" in capsys.readouterr().err
