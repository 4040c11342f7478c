"""Who denied it, from what the host said: owner, mode and ACL as the kernel judges them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support import samples
from tests.support.command import virtrace
from tests.unit.test_explainers import start
from virtrace.analysis.explain.refusals import may
from virtrace.analysis.explain.trace import explain_trace
from virtrace.bundle.pseudonyms import Originals, Pseudonyms
from virtrace.bundle.redact.texts import Texts
from virtrace.bundle.redact.trace import TraceRedactor
from virtrace.host.failures import backing_in
from virtrace.host.paths import steps_to
from virtrace.report.explanation import answer, explanation_lines
from virtrace.report.explanation_document import explanation_record
from virtrace.report.highlight import Style
from virtrace.trace.format import FailureRecord, unavailable
from virtrace.trace.reader import Trace, read_trace
from virtrace.trace.schema import check
from virtrace.trace.writer import Writer

NOBODY = 65534
USER = {
    "uid": 64055,
    "gid": 64055,
    "groups": [64055, 104],
    "name": "libvirt-qemu",
    "known_by": "qemu.conf",
    "overrides": False,
    "is_given": True,
}
DENIED = "Could not open '/vms/vm1.img': Permission denied"


def step(path: str, kind: str = "folder", **other: Any) -> dict[str, Any]:
    return {"path": path, "type": kind, "uid": 0, "gid": 0, "mode": "0755", "acl": [], **other}


def record(steps: list[dict[str, Any]], **other: Any) -> FailureRecord:
    """What the host said of /vms/vm1.img."""
    path = {"path": "/vms/vm1.img", "why": "disk vda", "steps": steps, "file_system": "ext4"}
    found = {
        "type": "failure",
        "collected": "2026-11-22T10:30:00+00:00",
        "call": 1,
        "name": "virDomainCreate",
        "domain": "vm1",
        "user": USER,
        "paths": [{**path, "holders": []}],
        "addresses": [],
        "log": unavailable("QEMU was not started in this call"),
        "kernel": [],
        "memory": {},
    }
    return cast("FailureRecord", {**found, **other})


def trace_with(failure: FailureRecord, error: str = DENIED) -> Trace:
    recorder = samples.Recorder()
    start(recorder, error)
    like = samples.HEADER["probes"][0]
    probes = [{**like, "name": name, "role": None} for name in ("virDomainCreate",)]
    header: Any = {**samples.HEADER, "probes": [*probes, samples.HEADER["probes"][-1]]}
    return Trace(header, recorder.events, failures=[failure])


def told(failure: FailureRecord, error: str = DENIED) -> tuple[str, str]:
    """The answer, and all evidence."""
    [one] = explain_trace(trace_with(failure, error), "t")
    return answer(one), "\n".join(each.text for each in one.findings[0].evidence)


FILE = step("/vms/vm1.img", "file", mode="0600")


def test_the_first_folder_that_denies_is_named() -> None:
    steps = [step("/"), step("/vms", mode="0750"), {**FILE, "mode": "0000"}]
    assert (
        "because user libvirt-qemu (64055) may not search the folder /vms (owner root, mode 0750): "
        in told(record(steps))[0]
    )


def test_a_file_that_libvirt_gives_to_the_user_is_not_blamed() -> None:
    sentence, evidence = told(record([step("/"), step("/vms"), FILE]))
    assert "because the host denied access to /vms/vm1.img: " in sentence
    assert "let user libvirt-qemu (64055) reach /vms/vm1.img" in evidence
    assert "libvirt makes that user the owner of the file" in evidence
    not_given = record([step("/"), step("/vms"), FILE], user={**USER, "is_given": False})
    assert "may not read the file /vms/vm1.img (owner root, mode 0600)" in told(not_given)[0]


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (
            'audit: type=1400 audit(1700000000.123:45): apparmor="DENIED" operation="open" '
            'profile="libvirt-0a" name="/vms/vm1.img" comm="qemu-system-x86" requested_mode="wr"',
            "AppArmor denied access to /vms/vm1.img",
        ),
        (
            "audit: type=1400 audit(1700000000.123:45): avc:  denied  { read } for  pid=1 "
            'comm="qemu-kvm" name="vm1.img" scontext=system_u:system_r:svirt_t:s0:c1,c2',
            "SELinux denied access to /vms/vm1.img",
        ),
    ],
)
def test_what_the_kernel_denied_is_the_answer_where_the_mode_allows(line: str, words: str) -> None:
    sentence, evidence = told(record([step("/"), step("/vms"), FILE], kernel=[line]))
    assert f"because {words}: " in sentence
    assert f"the kernel: {line}" in evidence


def test_a_server_of_files_has_rules_of_its_own() -> None:
    failure = record([step("/"), step("/vms"), FILE])
    failure["paths"][0]["file_system"] = "nfs4"
    assert "its file system is nfs4, whose server has rules of its own" in told(failure)[1]


def test_what_is_not_known_is_not_blamed() -> None:
    failure = record([step("/", mode="0700"), FILE], user=unavailable("no account"))
    assert "because the host denied access to /vms/vm1.img: " in told(failure)[0]


def test_no_right_is_blamed_for_another_error() -> None:
    failure = record([step("/", mode="0700"), FILE])
    sentence, _ = told(failure, "Could not open '/vms/vm1.img': Image is not in qcow2 format")
    assert "may not" not in sentence


@settings(deadline=None, max_examples=300)
@given(data=st.data())
def test_a_record_of_a_stranger_is_answered(data: st.DataObject) -> None:
    """Any values of the right types: an answer, and no internal error; no name in a bundle."""
    kinds = {str: st.text(max_size=8), int: st.integers(), bool: st.booleans()}

    def any_like(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: any_like(each) for key, each in value.items() if key != "type"} | (
                {"type": value["type"]} if "type" in value else {}
            )
        if isinstance(value, list):
            return [any_like(each) for each in value for _ in range(data.draw(st.integers(0, 2)))]
        if type(value) in kinds and data.draw(st.booleans()):
            return data.draw(kinds[type(value)])
        return value

    holder = {"pid": 1, "command": "a", "domain": "b", "locks": ["c"]}
    acl = [entry("user", 1, "r--"), entry("group", None, "rwx"), entry("mask", None, "---")]
    steps = [step("/", acl=acl), step("/a", "link", target="b"), step("/b", "file", label="l")]
    whole = record(
        [*steps, {"path": "/c", "problem": "No such file or directory"}],
        addresses=[{"address": "5900", "holders": [holder]}],
        log="QEMU ended",
        kernel=["audit(1.2:3): avc: denied"],
        memory={"MemTotal": 5, "guest": 6},
    )
    whole["paths"][0]["holders"] = [holder]  # type: ignore[list-item]
    failure = {**any_like(whole), "call": 1}
    check(failure, FailureRecord)
    error = data.draw(st.sampled_from([DENIED, "No such file or directory", '" lock', "memory"]))
    trace = trace_with(cast("FailureRecord", failure), error)
    for one in explain_trace(trace, "t"):
        assert list(explanation_lines([one], Style(), path="t"))
        explanation_record(one)
    TraceRedactor(Texts(Originals()), trace.header).record(failure)


def test_a_record_is_kept_by_a_trace(tmp_path: Path) -> None:
    trace = trace_with(record([step("/"), step("/vms", mode="0700")]))
    file = tmp_path / "t.jsonl"
    writer = Writer(file)
    writer.begin(trace.header)
    writer.write([*(event.to_record() for event in trace), *trace.failures])
    writer.close()
    assert read_trace(file).failures == trace.failures
    assert "may not search the folder /vms" in " ".join(virtrace("explain", file).stdout.split())


def test_names_of_the_host_do_not_come_into_a_bundle(tmp_path: Path) -> None:
    """Not even where a stranger's trace has them in odd places."""
    secret = "k6-Ostrich-Payroll"
    steps = [
        step("/"),
        step(f"/{secret}", label=secret),
        step(f"/{secret}/a", "link", target=secret),
    ]
    holder = {"pid": 1, "command": secret, "domain": secret, "locks": []}
    log = f"qemu: could not open '/{secret}/a.img'"
    line = f'audit: audit(1.2:3): apparmor="DENIED" name="/{secret}/a.img" comm="qemu"'
    failure = record(
        steps,
        domain=secret,
        user={**USER, "name": secret},
        addresses=[{"address": f"/{secret}/sock", "holders": [holder]}],
        log=log,
        kernel=[line],
        memory={"MemTotal": 5, secret: 6},
        more=secret,
    )
    failure["paths"][0]["path"] = f"/{secret}/a"
    failure["paths"][0]["why"] = f"backing file of /{secret}/b"
    trace = trace_with(failure)
    originals = Originals()
    TraceRedactor(Texts(originals), trace.header).record(dict(failure))
    names = Pseudonyms(originals)
    redacted = TraceRedactor(Texts(names), trace.header).record(dict(failure))
    assert "Ostrich" not in json.dumps(redacted)
    check(redacted, FailureRecord)
    assert redacted["memory"] == {"MemTotal": 5}


def entry(kind: str, id_: int | None, rights: str) -> dict[str, Any]:
    return {"kind": kind, "id": id_, "rights": rights}


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
@pytest.mark.parametrize("mode", [0o700, 0o711, 0o750, 0o705, 0o770, 0o000, 0o070])
@pytest.mark.parametrize("owner", [(0, 0), (NOBODY, 0), (0, NOBODY)])
@pytest.mark.parametrize(
    "acl", ["", "u:65534:---", "u:65534:r-x", "g:65534:rwx", "u:65534:rwx,m::r--"]
)
def test_rights_are_as_the_kernel_has_them(
    tmp_path: Path, mode: int, owner: tuple[int, int], acl: str
) -> None:
    """access(2) of a process of that user is the second source."""
    for parent in (tmp_path, *tmp_path.parents):
        if parent != Path("/"):
            parent.chmod(parent.stat().st_mode | 0o011)
    folder = tmp_path / "folder"
    folder.mkdir()
    os.chown(folder, *owner)
    folder.chmod(mode)
    if acl:
        os.setxattr(folder, "system.posix_acl_access", posix_acl(mode, acl))
    asked = "import os,sys; print(*(os.access(sys.argv[1], m) for m in (4, 2, 1)))"
    by_kernel = subprocess.check_output(
        [sys.executable, "-c", asked, folder], user=NOBODY, group=NOBODY, extra_groups=[], text=True
    )
    found = steps_to(str(folder), os.getpid(), 5.0)[-1]
    user: Any = {**USER, "uid": NOBODY, "gid": NOBODY, "groups": []}
    assert by_kernel.split() == [str(may(found, user, right)) for right in "rwx"]


def posix_acl(mode: int, words: str) -> bytes:
    """The mode and one or two more entries, as the kernel stores them."""
    nobody = (1 << 32) - 1
    rows = {(1, nobody): mode >> 6 & 7, (4, nobody): mode >> 3 & 7, (32, nobody): mode & 7}
    rows[16, nobody] = 7
    for word in words.split(","):
        tag, id_, letters = word.split(":")
        rights = sum(bit for letter, bit in (("r", 4), ("w", 2), ("x", 1)) if letter in letters)
        rows[{"u": 2, "g": 8, "m": 16}[tag], int(id_) if id_ else nobody] = rights
    return (2).to_bytes(4, "little") + b"".join(
        tag.to_bytes(2, "little") + rights.to_bytes(2, "little") + id_.to_bytes(4, "little")
        for (tag, id_), rights in sorted(rows.items())
    )


@pytest.mark.parametrize(
    "head",
    [
        b"",
        b"QFI\xfb",
        b"QFI\xfb" + b"\xff" * 200,
        b"raw" * 100,
        b"QFI\xfb\0\0\0\3" + (1 << 60).to_bytes(8, "big") + b"\0\0\0\x08" + bytes(200),
    ],
)
def test_a_header_that_is_none_names_no_file(head: bytes) -> None:
    assert backing_in(head, "/images/vda") is None


def test_a_path_that_never_ends(tmp_path: Path) -> None:
    (tmp_path / "a").symlink_to("b")
    (tmp_path / "b").symlink_to("a")
    assert (
        steps_to(str(tmp_path / "a"), os.getpid(), 5.0)[-1]["problem"] == "there are too many links"
    )
    assert steps_to("/" + "x" * 5000, os.getpid(), 5.0)[-1]["problem"] == "File name too long"
    assert "problem" in steps_to("/a\0b", os.getpid(), 5.0)[-1]
