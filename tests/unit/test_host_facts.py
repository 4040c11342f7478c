"""What is asked of the host, on real files, and in a time that is bounded."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import time
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from tests.support import samples
from tests.support.paths import REPOSITORY
from virtrace.errors import TraceError, Unavailable
from virtrace.host.disks import collect, image_info, stat_of
from virtrace.host.programs import Programs
from virtrace.host.virsh import connection
from virtrace.trace.reader import Trace, read_trace
from virtrace.trace.writer import insert_before_footer

MIB = 1 << 20


@pytest.fixture
def programs() -> Programs:
    return Programs(time.monotonic() + 60)


def qemu_img(*arguments: Any) -> None:
    if shutil.which("qemu-img") is None:
        pytest.skip("qemu-img is not installed")
    subprocess.run(["qemu-img", *map(str, arguments)], check=True, stdout=subprocess.DEVNULL)


def test_stat_of_a_sparse_file_behind_a_link(tmp_path: Path, programs: Programs) -> None:
    file = tmp_path / "disk 'one'.raw"
    with file.open("wb") as image:
        image.truncate(10 * MIB)
        image.write(b"x" * 4096)
    link = tmp_path / "-link"
    link.symlink_to(file)
    expected = {
        "type": "file",
        "size_bytes": 10 * MIB,
        "allocated_bytes": file.stat().st_blocks * 512,
    }
    assert stat_of(str(file), programs) == stat_of(str(link), programs) == expected


@pytest.mark.parametrize(
    ("path", "why"),
    [
        (None, "not a file or device of this host"),
        ("pool/image", "not a file or device of this host"),
        ("/nowhere/disk", "No such file or directory"),
    ],
)
def test_stat_of_what_is_not_here(path: str | None, why: str, programs: Programs) -> None:
    with pytest.raises(Unavailable, match=why):
        stat_of(path, programs)


def test_a_fifo_is_not_opened(tmp_path: Path, programs: Programs) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    kind = stat_of(str(fifo), programs)
    assert kind["type"] == "other"
    with pytest.raises(Unavailable, match="not a file or device that can be opened"):
        image_info(str(fifo), kind, "raw", programs)


def test_a_raw_disk_that_looks_like_another_image_stays_raw(
    tmp_path: Path, programs: Programs
) -> None:
    """The guest made its raw disk look like a qcow2 image that names a file of the host."""
    file = tmp_path / "vda.raw"
    secret = tmp_path / "secret"
    secret.write_text("secret")
    qemu_img("create", "-q", "-f", "qcow2", "-u", "-b", secret, "-F", "raw", file, MIB)
    kind = stat_of(str(file), programs)
    info = image_info(str(file), kind, "raw", programs)
    assert info["format"] == "raw"
    assert "secret" not in str(info)
    with pytest.raises(Unavailable, match="the format is not known"):
        image_info(str(file), kind, None, programs)
    with pytest.raises(Unavailable, match="only raw and qcow2 are opened"):
        image_info(str(file), kind, "vmdk", programs)


def test_an_image_with_a_data_file_is_not_opened(tmp_path: Path, programs: Programs) -> None:
    image, data = tmp_path / "vda.qcow2", tmp_path / "data.raw"
    qemu_img("create", "-q", "-f", "qcow2", "-o", f"data_file={data}", image, MIB)
    with pytest.raises(Unavailable, match="has its data in another file"):
        image_info(str(image), stat_of(str(image), programs), "qcow2", programs)
    plain = tmp_path / "plain.qcow2"
    qemu_img("create", "-q", "-f", "qcow2", plain, MIB)
    assert (
        image_info(str(plain), stat_of(str(plain), programs), "qcow2", programs)["format"]
        == "qcow2"
    )


def test_a_question_that_hangs_is_given_up() -> None:
    before = time.monotonic()
    with pytest.raises(Unavailable, match=r"sleep did not end within (1\.0|0\.\d) s"):
        # A second, or it could be over before it began.
        Programs(before + 1).run("sleep", "600")
    with pytest.raises(Unavailable, match="is over"):
        Programs(before - 1).run("true")


def test_a_question_that_fails_says_why(programs: Programs) -> None:
    with pytest.raises(Unavailable, match="no-such-program is not installed"):
        programs.run("no-such-program")
    with pytest.raises(Unavailable, match="false: ended with 1"):
        programs.run("false")


def test_the_way_to_a_daemon_is_the_socket_it_listens_on(tmp_path: Path) -> None:
    with pytest.raises(Unavailable, match="listens on none of libvirt's sockets"):
        connection(os.getpid())
    path = tmp_path / "libvirt-sock"
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(path))
        with pytest.raises(Unavailable, match="listens on none"):
            connection(os.getpid())
        listening.listen()
        mode = "session" if os.geteuid() else "system"
        expected = f"qemu+unix:///{mode}?socket={quote(str(path))}"
        assert connection(os.getpid()) == [expected]
        with socket.socket(socket.AF_UNIX) as read_only:
            read_only.bind(f"{path}-ro")
            read_only.listen()
            assert connection(os.getpid()) == [f"{expected}-ro", "-r"]


def sample(tmp_path: Path) -> Path:
    return samples.write(tmp_path / "t.jsonl", samples.records())


def test_what_cannot_be_had_is_said_so(tmp_path: Path) -> None:
    """Of a daemon that is gone, and of disks that are not here."""
    with subprocess.Popen(["true"]) as gone:
        pass
    [record] = collect(read_trace(sample(tmp_path)), gone.pid)
    facts: Any = record
    assert (facts["domain"], facts["disk"]) == ("vm1", "vda")
    for name in ("xml", "stat", "file_system", "image_info", "lvm"):
        assert set(facts[name]) == {"unavailable"}
        assert facts[name]["unavailable"]


def test_facts_stand_before_the_footer_and_are_read_again(tmp_path: Path) -> None:
    file = sample(tmp_path)
    before = read_trace(file)
    facts = collect(before, 1 << 22)
    insert_before_footer(file, lambda _: facts)
    after = read_trace(file)
    assert after == Trace(before.header, before.events, before.footer, [], facts)
    insert_before_footer(file, lambda _: facts)
    assert read_trace(file).host == facts * 2


def test_nothing_is_added_to_a_trace_that_has_no_footer(tmp_path: Path) -> None:
    file = samples.write(tmp_path / "t.jsonl", samples.records()[:-1])
    before = file.read_bytes()
    with pytest.raises(TraceError, match="has no footer"):
        insert_before_footer(file, lambda _: [{"type": "host"}])
    assert file.read_bytes() == before


def test_a_full_disk_leaves_the_trace_as_it_was(tmp_path: Path) -> None:
    """On a file system as small as the trace; a limit of the file's size does the same."""
    file = sample(tmp_path)
    before = file.read_bytes()
    script = (
        "import resource, signal, sys; from pathlib import Path\n"
        "from virtrace.errors import TraceError, Unavailable\n"
        "from virtrace.trace.writer import insert_before_footer\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        f"resource.setrlimit(resource.RLIMIT_FSIZE, ({len(before) + 100},) * 2)\n"
        "try:\n"
        "    insert_before_footer(Path(sys.argv[1]), lambda _: [{'x': 'y' * 5000}])\n"
        "except TraceError as error:\n"
        "    print(error.what)\n"
    )
    source = str(REPOSITORY / "src")
    done = subprocess.run(
        ["python3", "-c", script, str(file)],
        env={**os.environ, "PYTHONPATH": source},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert "cannot add to the trace" in done.stdout, done.stderr
    assert file.read_bytes() == before
