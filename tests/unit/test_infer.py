"""A recipe's static functions in drivers that have them once, twice, or not at all."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests.support.toolchain import build, need
from virtrace.image.model import Module, Program
from virtrace.plan.infer import Inferred, infer
from virtrace.recipe.catalogue import find_recipe

METHOD, GATHER = "qemuDomainGetBlockInfo", "qemuDomainBlocksStatsGather"
CHECK = "checks access for virDomainGetBlockInfo"

DRIVER = """
extern int %(acl)s(void *);
extern int work(int);
__attribute__((visibility("default"), noinline)) int qemuMonitorGetAllBlockStatsInfo(int n)
{ return work(n) + 1; }
static __attribute__((noinline)) int gather(int n, int *out)
{ *out = qemuMonitorGetAllBlockStatsInfo(n); return work(*out) - n; }
static int get_info(void *conn, int n)
{
    int out = 0;
    return %(acl)s(conn) < 0 || gather(n, &out) < 0 ? -1 : out;
}
static int get_again(void *conn, int n) { return %(acl)s(conn) < 0 ? -1 : work(n); }
typedef int (*method)(void *, int);
__attribute__((visibility("default"))) const method table[] = { get_info, %(more)s };
"""


@pytest.fixture(autouse=True)
def _no_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def inferred(
    folder: Path, more: str = "", acl: str = "virDomainGetBlockInfoEnsureACL"
) -> dict[str, Inferred]:
    need("strip")
    source = DRIVER % {"acl": acl, "more": more}
    flags = ("-shared", "-O2", "-fvisibility=hidden")
    driver = build(source, folder / "libvirt_driver_qemu.so", *flags)
    subprocess.run(["strip", driver], check=True)
    module = Module(str(driver), driver, 0, 0, 0, False)
    return by_name(module)


def by_name(module: Module) -> dict[str, Inferred]:
    # It makes the program a libvirt daemon; nothing reads it.
    library = Module("/usr/lib/libvirt.so.0", Path("/usr/lib/libvirt.so.0"), 0, 0, 0, False)
    process = Program("libvirtd", Path("/"), (library, module))
    return {span.name: found for span, found in infer(find_recipe("blockinfo"), process).items()}


def test_both_are_found(tmp_path: Path) -> None:
    found = inferred(tmp_path)
    assert found[METHOD].offset is not None
    assert found[METHOD].how == CHECK
    assert found[GATHER].offset not in (None, found[METHOD].offset)


def test_two_that_could_be_it_are_none(tmp_path: Path) -> None:
    found = inferred(tmp_path, more="get_again")
    assert found[METHOD].offset is None
    assert found[METHOD].how.endswith(f": {CHECK}")
    assert found[METHOD].how.count("+0x") == 2
    assert found[GATHER] == Inferred(None, f"{METHOD}, which calls it, was not found")


def test_without_the_import_there_is_none(tmp_path: Path) -> None:
    found = inferred(tmp_path, acl="virDomainGetBlockInfoMayACL")
    assert found[METHOD] == Inferred(None, f"no function: {CHECK}")
    assert found[GATHER].offset is None


def test_what_cannot_be_read_says_why(tmp_path: Path) -> None:
    driver = tmp_path / "libvirt_driver_qemu.so"
    build("int nothing;", driver, "-shared", "-fno-asynchronous-unwind-tables", "-nostdlib")
    module = Module(str(driver), driver, 0, 0, 0, False)
    found = by_name(module)
    assert found[METHOD].offset is None
    assert "cannot be found" in found[METHOD].how
