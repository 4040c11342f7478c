"""Numbers of libvirt's API in words, beside the numbers."""

from __future__ import annotations

import csv
import errno
import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.command import virtrace
from tests.support.paths import DATA, REPOSITORY
from virtrace.analysis.values.meaning import DETAILS, meaning, meanings
from virtrace.trace import roles

OLD = DATA / "version1"


@pytest.mark.parametrize(
    ("probe", "role", "name", "value", "expected"),
    [
        ("error", roles.ERROR, "code", 38, "system error"),
        ("error", roles.ERROR, "code", 8, "invalid arg"),
        ("error.raised", roles.ERROR_PLACE, "domain", 10, "qemu"),
        ("error.system", roles.ERROR_PLACE, "errno", errno.ENOENT, "ENOENT"),
        ("virDomainCreateWithFlags", None, "flags", 3, "start paused, start autodestroy"),
        ("virDomainBlockCommit", None, "flags", 4, "active"),
        ("virConnectGetAllDomainStats", None, "stats", 36, "balloon, block"),
        ("virDomainGetInfo", None, "state", 5, "shut off"),
        ("blockjob.told", None, "status", 3, "ready"),
        ("volume", None, "type", 2, "dir"),
        ("write.failed", roles.WRITE_FAILED, "result", -errno.ENOSPC, "ENOSPC"),
        ("device.error", roles.DEVICE_ERROR, "error", errno.EIO, "EIO"),
        ("device.error", roles.DEVICE_ERROR, "action", 2, "stop"),
        ("device.error", roles.DEVICE_ERROR, "on_write_error", 2, "enospc"),
        ("job.error", roles.JOB_ERROR, "on_error", 1, "ignore"),
        ("guest.paused", roles.GUEST_PAUSED, "state", 3, "io-error"),
        # What no table has, has no words.
        ("virDomainCreateWithFlags", None, "flags", 0, None),
        ("virDomainCreateWithFlags", None, "flags", 1 << 30 | 1, None),
        ("virDomainCreateWithFlags", None, "flags", -1, None),
        ("virDomainCreateWithFlags", None, "flags", True, None),
        ("virDomainGetInfo", None, "state", 99, None),
        ("anything", None, "flags", 1, None),
        ("error", roles.ERROR, "code", "8", None),
    ],
)
def test_words(probe: str, role: str | None, name: str, value: object, expected: str) -> None:
    assert meaning(probe, role, name, value) == expected


def test_words_in_structs() -> None:
    values = {"info": {"state": 1, "memory": 1}, "state": {"unavailable": "gone"}}
    assert meanings("virDomainGetInfo", None, values) == {"info.state": "running"}


def test_a_call_is_shown_with_words(tmp_path: Path) -> None:
    shown = virtrace("show", OLD / "dominfo.jsonl").stdout
    assert "state             1 (running)" in shown
    document = json.loads(virtrace("show", "--json", OLD / "dominfo.jsonl").stdout)
    root = document["calls"][0]["root"]
    assert (root["returned"]["info"]["state"], root["words"]) == (1, {"info.state": "running"})
    assert "error.system errno=2 (ENOENT) domain=18 (storage)" in (
        virtrace("show", OLD / "errors.jsonl").stdout
    )
    table = tmp_path / "t.csv"
    assert virtrace("export", "--to", "csv", "-o", table, OLD / "dominfo.jsonl").returncode == 0
    with table.open() as file:
        row = next(csv.DictReader(file))
    assert (row["returned.info.state"], row["returned.info.state.words"]) == ("1", "running")


API = """<api><symbols>
<enum name='VIR_DOMAIN_START_PAUSED' value='1' type='virDomainCreateFlags' version='0.8.2'/>
<enum name='VIR_DOMAIN_START_OTHER' value='1' type='virDomainCreateFlags' version='0.9.0'/>
<enum name='VIR_DOMAIN_START_SAME' value='VIR_X' type='virDomainCreateFlags' version='0.9.0'/>
<function name='virDomainCreateXML'>
  <arg name='flags' info='bitwise-OR of supported virDomainCreateFlags'/>
  <arg name='xml' info='the XML'/>
</function>
"""


def test_the_tables_are_made_from_the_api_of_libvirt(tmp_path: Path) -> None:
    """By the tool that made them, of names and numbers alone."""
    folder = tmp_path / "src/virtrace/analysis/values"
    folder.mkdir(parents=True)
    (tmp_path / "tools").mkdir()
    tool = tmp_path / "tools/public-values.py"
    tool.write_text((REPOSITORY / "tools/public-values.py").read_text())
    kinds = (
        *("virErrorNumber", "virErrorDomain", "virDomainState", "virDomainJobType"),
        *("virDomainBlockJobType", "virConnectDomainEventBlockJobStatus"),
        *("virStorageVolType", "virStoragePoolState", "virDomainEventID", "virDomainEventType"),
        *(f"virDomainEvent{each}DetailType" for each in DETAILS),
    )
    enums = [
        f"<enum name='VIR_{kind}_{word}' value='{value}' type='{kind}' version='1.2.3'/>"
        for kind in kinds
        for value, word in enumerate(("FIRST_ONE", "SHUTOFF", "LAST"))
    ]
    (tmp_path / "api.xml").write_text(API + "\n".join(enums) + "</symbols></api>")
    subprocess.run([sys.executable, str(tool), str(tmp_path / "api.xml")], check=True)
    assert json.loads((folder / "arguments.json").read_text()) == {
        "virDomainCreateXML.flags": ["virDomainCreateFlags"]
    }
    assert json.loads((folder / "flags.json").read_text()) == {
        "virDomainCreateFlags": {"1": ["paused or other", "0.8.2"]}
    }
    assert json.loads((folder / "states.json").read_text()) == {
        "virDomainState": {"0": ["first one", "1.2.3"], "1": ["shut off", "1.2.3"]}
    }
