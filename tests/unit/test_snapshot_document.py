"""The file of a snapshot: its schema, its page, and what is refused."""

from __future__ import annotations

import copy
import io
import json
from pathlib import Path
from typing import Any

import jsonschema_rs
import pytest
import yaml

from tests.support.documents import documented_names, keys
from tests.support.paths import DOCS
from virtrace.errors import TraceError
from virtrace.snapshot import format as format_
from virtrace.snapshot import verdicts
from virtrace.snapshot.format import Snapshot, is_snapshot, read_snapshot, schema

VALIDATOR = jsonschema_rs.Draft202012Validator(schema())
THREAD: dict[str, Any] = {
    "tid": 11,
    "own_tid": 1,
    "name": "rpc-libvirtd",
    "role": "worker",
    "state": "S",
    "moved": False,
    "asleep_s": 4.7,
    "stopped_ms": None,
    "api": "virDomainSave",
    "client": {"pid": 5, "user": "root", "command": "virsh save vm1 /x"},
    "request": {
        "program": 0x20008086,
        "procedure": 50,
        "serial": 7,
        "subject": "domain",
        "name": "vm1",
        "arguments": {"to": "/x"},
    },
    "doing": "waits for 4.7 s for the kernel, in openat(/x)",
    "wait": {
        "kind": "system call",
        "what": None,
        "owner": None,
        "domain": None,
        "since": None,
        "until": None,
        "command": None,
        "late": False,
        "system_call": "openat",
        "file": "/x",
        "descriptor": None,
        "function": "virQEMUFileOpenAs",
        "children": [],
        "mount": {"point": "/", "type": "ext4"},
        "fifo": True,
    },
    "frames": ["open64+0x55 (libc.so.6)"],
    "frames_end": None,
}
SAMPLE: dict[str, Any] = {
    "type": "snapshot",
    "format": "virtrace-snapshot",
    "version": 1,
    "source": "process",
    "taken": "2026-11-30T09:13:38+00:00",
    "seconds": 1.0,
    "tool": {"virtrace": "0.1.0", "python": "3.11.2"},
    "host": {"machine": "x86_64", "kernel": "6.1.0"},
    "daemon": {
        "pid": 1,
        "exe": "/usr/sbin/libvirtd",
        "program": {"name": "libvirt", "version": "9.0.0"},
    },
    "crash": None,
    "verdicts": [
        {
            "verdict": "fifo",
            "says": "virDomainSave on vm1 waits.",
            "means": "Nobody reads.",
            "do": [{"command": "rm /x", "effect": "removes it"}],
            "thread": 11,
            "behind": [],
        }
    ],
    "threads": [THREAD],
    "domains": [
        {
            "name": "vm1",
            "uuid": "24d815a4-727d-4ae8-8645-24ecb21daa6a",
            "id": 1,
            "qemu": 9,
            "jobs": [
                {
                    "kind": "async job",
                    "work": "save",
                    "owner": 1,
                    "api": "remoteDispatchDomainSave",
                    "since": 1796028379.5,
                }
            ],
        }
    ],
    "monitors": [{"kind": "qemuMonitor", "domain": "vm1", "command": None}],
    "servers": [],
    "qemus": [],
    "neighbours": [
        {
            "name": "virtlogd",
            "socket": "/run/libvirt/virtlogd-sock",
            "pid": 7,
            "state": "S",
            "has_socket": True,
            "waiting": [],
        }
    ],
    "objects": {"virDomainObj": 1},
    "object_bytes": {"virDomainObj": 264},
    "notes": [],
}


def test_the_file_is_made_from_the_types() -> None:
    file = Path(format_.__file__).with_name("schema.json")
    assert json.loads(file.read_text(encoding="utf-8")) == schema()
    jsonschema_rs.meta.validate(schema())


def test_schema_and_reader_accept_the_sample() -> None:
    VALIDATOR.validate(SAMPLE)
    assert read(SAMPLE) == SAMPLE


@pytest.mark.parametrize("indent", [None, 2], ids=["saved", "printed"])
def test_a_snapshot_is_read_on_one_line_and_on_several(tmp_path: Path, indent: int | None) -> None:
    saved = tmp_path / "file"
    saved.write_text(json.dumps(SAMPLE, indent=indent))
    with saved.open("rb") as file:
        assert is_snapshot(file, "file")
        assert read_snapshot(file, "file") == SAMPLE


def test_a_document_of_another_type_is_no_snapshot(tmp_path: Path) -> None:
    saved = tmp_path / "file"
    saved.write_text(json.dumps({**SAMPLE, "type": "doctor"}))
    with saved.open("rb") as file:
        assert not is_snapshot(file, "file")


@pytest.mark.parametrize("key", sorted(set(SAMPLE) - {"type"}))
def test_nothing_may_be_missing(key: str) -> None:
    broken = {name: value for name, value in SAMPLE.items() if name != key}
    assert not VALIDATOR.is_valid(broken)
    with pytest.raises(TraceError, match=key):
        read(broken)


def test_another_version_is_refused() -> None:
    with pytest.raises(TraceError, match="format version 2"):
        read({**SAMPLE, "version": 2})


@pytest.mark.parametrize("fields", [{"taken": "yesterday"}, {"verdicts": []}])
def test_what_its_readers_need_is_there(fields: dict[str, Any]) -> None:
    with pytest.raises(TraceError, match="not a whole snapshot"):
        read({**SAMPLE, **fields})


@pytest.mark.parametrize(
    ("place", "value"),
    [
        (("threads", 0, "client"), {}),
        (("threads", 0, "request"), {"program": 1}),
        (("threads", 0, "wait", "command"), {"text": 1}),
        (("threads", 0, "wait", "mount"), {"point": "/"}),
        (("crash",), {"signal": 11}),
        (("domains", 0, "jobs"), [{}]),
        (("domains", 0, "jobs"), {}),
    ],
)
def test_what_can_be_null_is_checked_where_it_is_not(place: tuple[Any, ...], value: Any) -> None:
    broken = copy.deepcopy(SAMPLE)
    inner: Any = broken
    for key in place[:-1]:
        inner = inner[key]
    inner[place[-1]] = value
    assert not VALIDATOR.is_valid(broken)
    with pytest.raises(TraceError, match="not a whole snapshot"):
        read(broken)


def test_every_key_is_documented() -> None:
    assert set(keys(schema())) <= documented_names("snapshot-format.md")


def test_every_verdict_is_documented_and_has_a_condition() -> None:
    file = Path(verdicts.__file__).with_name("verdicts.yaml")
    names = set(yaml.safe_load(file.read_text(encoding="utf-8")))
    _, _, page = (DOCS / "hang.md").read_text(encoding="utf-8").partition("## Verdicts")
    table = page.partition("[snapshot-format.md]")[0]
    assert names == set(verdicts._CONDITIONS)
    for name in names:
        assert f"`{name}`" in table


def read(found: dict[str, Any]) -> Snapshot:
    return read_snapshot(io.BytesIO(json.dumps(found).encode()), "now.snapshot")
