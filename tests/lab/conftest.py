"""One real libvirtd for all tests of a kind, looked over after each of them."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest

from tests.support.containers import contained
from tests.support.hanging import relaunch
from tests.support.intact import assert_untraced_and_intact
from tests.support.namespaces import open_loopback, within
from tests.support.own_files import copied, copy_here, of_libvirt
from tests.support.stages import second_guest
from virtrace.errors import LabError
from virtrace.lab import debug_build
from virtrace.lab.daemon import Lab
from virtrace.lab.roots import ensure_root
from virtrace.lab.stage import Stage


def bring_up(
    debug_info: bool = False,
    daemon: str = debug_build.DAEMON,
    hostname: str | None = None,
    release: str | None = None,
) -> Lab:
    # Not pytest's own tmp_path: its parents keep out the user that runs root's lab.
    folder = Path(tempfile.mkdtemp(prefix="virtrace-test-", dir="/var/tmp"))
    lab = Lab(folder, debug_info, release, daemon=daemon, hostname=hostname)
    try:
        lab.up()
    except LabError as error:
        lab.down()
        if "not installed" in error.what and not os.environ.get("CI"):
            pytest.skip(f"{error.what}; try: {error.remedy}")
        raise
    return lab


@pytest.fixture(scope="session", autouse=True)
def _own_files(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """For root, libvirt's files are copies, also in roots: tests run in several processes at once.

    When the kernel removes a uprobe, it writes to each process that maps the file and has had one:
    GDB's breakpoint would go.
    """
    if os.geteuid() != 0:
        yield
        return
    folder = tmp_path_factory.mktemp("files")

    def own_root(release: str, progress: Callable[[str], None]) -> Path:
        root, copies = ensure_root(release, progress), folder / release
        if not copies.exists():
            copy_here(of_libvirt(root), copies)
        return root

    with copied(of_libvirt(Path("/")), folder), pytest.MonkeyPatch.context() as patch:
        patch.setattr("virtrace.lab.daemon.ensure_root", own_root)
        yield


@pytest.fixture(scope="session")
def stock_lab() -> Iterator[Lab]:
    """The distribution's own libvirtd, stripped."""
    lab = bring_up()
    yield lab
    lab.down()


@pytest.fixture(params=["gdb", "uprobes"])
def engine(request: pytest.FixtureRequest) -> str:
    """Each of the two."""
    if request.param == "uprobes" and os.geteuid() != 0:
        pytest.skip("only root can set uprobes")
    name: str = request.param
    return name


@pytest.fixture(scope="session")
def debug_lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    """Libvirt 9.0.0 with debug info."""
    with ExitStack() as stack:
        # Whatever is missing is for `bring_up` to say.
        with suppress(LabError):
            built = debug_build.ensure_built(print)
            files = [file for file in built.iterdir() if not file.is_symlink()]
            if os.geteuid() == 0:
                stack.enter_context(copied(files, tmp_path_factory.mktemp("debug-files")))
        lab = bring_up(debug_info=True)
        stack.callback(lab.down)
        yield lab


@pytest.fixture(
    params=["stock_lab", pytest.param("debug_lab", marks=pytest.mark.matrix)],
    ids=["stripped", "debug info"],
)
def lab(request: pytest.FixtureRequest) -> Lab:
    """Each of the two."""
    lab: Lab = request.getfixturevalue(request.param)
    return lab


@pytest.fixture
def folder() -> Iterator[Path]:
    """Not pytest's own tmp_path: its parents keep out the user that runs root's lab."""
    path = Path(tempfile.mkdtemp(prefix="virtrace-test-", dir="/var/tmp"))
    yield path
    if os.path.lexists(path):
        Lab(path).down()


@pytest.fixture
def other_host() -> Iterator[Lab]:
    """The distribution's own libvirtd again, on another host as far as it can tell."""
    if os.geteuid() != 0:
        pytest.skip("only root can give a daemon another host's name")
    lab = bring_up(hostname="elsewhere")
    yield lab
    lab.down()


@pytest.fixture
def stage(stock_lab: Lab) -> Iterator[Stage]:
    """A second guest, vm2, for what may end it."""
    with second_guest(stock_lab) as stage:
        yield stage


@pytest.fixture(autouse=True)
def _unharmed(request: pytest.FixtureRequest) -> Iterator[None]:
    """After every test: no tracer, no breakpoint byte, and the daemon answers."""
    yield
    for name in ("stock_lab", "debug_lab"):
        if name in request.fixturenames:
            lab: Lab = request.getfixturevalue(name)
            assert_untraced_and_intact(lab.pid)
            assert lab.virsh("domblkinfo", "vm1", "vda").returncode == 0


@pytest.fixture(
    scope="module",
    params=[
        pytest.param("stock_lab", id="9.0.0"),
        pytest.param("container", id="9.0.0 in a container"),
        *(
            pytest.param(name, id=version, marks=pytest.mark.matrix)
            for name, version in (
                ("debug_lab", "9.0.0 with debug info"),
                ("bullseye", "7.0.0"),
                ("trixie", "11.3.0"),
                ("sid", "12.8.0"),
            )
        ),
    ],
)
def any_lab(request: pytest.FixtureRequest) -> Iterator[Lab]:
    """All releases and builds of libvirt, each for all tests of a module."""
    with ExitStack() as stack:
        if request.param.endswith("_lab"):
            lab: Lab = request.getfixturevalue(request.param)
        else:
            is_contained = request.param == "container"
            lab = bring_up(release=None if is_contained else request.param)
            stack.callback(lab.down)
            if is_contained:
                stack.enter_context(contained(lab))
        yield lab
        assert_untraced_and_intact(lab.pid)
        assert lab.virsh("domblkinfo", "vm1", "vda").returncode == 0


@pytest.fixture(scope="module")
def any_stage(any_lab: Lab) -> Iterator[Stage]:
    """A second guest, vm2, for what may harm it; it runs again after a test that ended it."""
    with second_guest(any_lab) as stage:
        yield stage


@pytest.fixture
def any_guest(any_lab: Lab) -> Iterator[str]:
    """A guest that does not run."""
    any_lab.define("vm3", any_lab.folder / "vm3.xml", "")
    yield "vm3"
    any_lab.virsh("destroy", "vm3")
    any_lab.virsh_checked("undefine", "vm3")


@pytest.fixture
def restartable(any_lab: Lab) -> Iterator[Lab]:
    """A daemon that a test may start anew, also with other settings."""
    yield any_lab
    relaunch(any_lab)
    # It has connected to its QEMU anew, too.
    any_lab.virsh_checked("domblkinfo", "vm1", "vda")


@pytest.fixture
def elsewhere(any_lab: Lab) -> Iterator[Lab]:
    """The same libvirt on another host, as far as it can tell, with a guest vm3 that runs.

    Less than the memory of a guest fits into the sockets of that host.
    """
    lab = bring_up(any_lab.debug_info, hostname="elsewhere", release=any_lab.release)
    relaunch(lab, "unshare", "--net")
    open_loopback(lab.pid)
    with within(lab.pid, "net"):
        Path("/proc/sys/net/ipv4/tcp_wmem").write_text("4096 4096 4096")
    lab.define("vm3", lab.folder / "vm3.xml", "")
    lab.virsh_checked("start", "vm3")
    yield lab
    lab.down()
