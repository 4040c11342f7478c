"""Bundles of snapshots: what is in them, what is not, and that they can be read."""

from __future__ import annotations

import copy
import json
import shlex
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.support import redaction
from tests.support.bundle_secrets import Scan, parts, secrets
from tests.support.command import virtrace
from tests.unit.test_snapshot_document import SAMPLE, THREAD
from virtrace.bundle import archive
from virtrace.bundle.collect import make
from virtrace.bundle.redact.snapshot import SnapshotRedactor
from virtrace.host.facts import HostFacts
from virtrace.snapshot import verdicts
from virtrace.snapshot.format import SNAPSHOT
from virtrace.trace.format import Json, unavailable

SECRETS = secrets()
NONE = unavailable("not asked")
# Names of functions stay, as in the backtraces of traces: any word of C can be one.
CODE = {"api", "function", "frames", "waits_in", "objects"}
# What makes the document a snapshot; and releases, which can have any numbers.
FIXED = {"type", "format", "version", "verdict", "machine", "kernel", "address"}


def redacted(document: dict[str, Any]) -> dict[str, Any]:
    return redaction.in_two_passes(lambda texts: SnapshotRedactor(texts).snapshot(document))


def files_of(document: dict[str, Any]) -> Mapping[str, bytes]:
    domains = {one["name"]: {"log": NONE} for one in document["domains"]}
    return make(None, HostFacts(NONE, domains, NONE, None, document), (), lambda _: None).files


def full(name: str = "vm1") -> dict[str, Any]:
    """A snapshot with something at every place; the guest is called so."""
    thread = copy.deepcopy(THREAD)
    thread["name"] = f"vm-{name}"[:15]
    thread["frames"].append("method of virDomainSave+0x10a (libvirt_driver_qemu.so)")
    thread["client"]["command"] = f"virsh save {name} /x"
    thread["request"].update(name=name, arguments={"to": f"/data/{name}.save"})
    thread["doing"] = f"waits for 4.7 s for process 77 (/etc/hooks/qemu {name}), in virHookCall"
    thread["wait"].update(
        what=f"the lock of domain {name}",
        domain=name,
        file=f"/data/{name}.save",
        command={
            "text": json.dumps({"execute": "block_resize", "filename": f"/data/{name}.save"}),
            "name": "block_resize",
            "id": "libvirt-7",
            "sent": True,
        },
        children=[{"pid": 77, "command": f"/etc/hooks/qemu {name}", "state": "S"}],
    )
    document = copy.deepcopy(SAMPLE)
    document["domains"][0]["name"] = name
    document["threads"] = [thread]
    document["monitors"] = [
        {"kind": "qemuMonitor", "domain": name, "command": thread["wait"]["command"]}
    ]
    document["servers"] = [
        {
            "name": "libvirtd",
            "clients": 1,
            "connections": [
                {
                    "pid": 5,
                    "requests": 1,
                    "most_requests": 5,
                    "full": False,
                    "keepalive": {"unavailable": "none was found"},
                }
            ],
            "most_clients": 5000,
            "unauthenticated": 0,
            "most_unauthenticated": 20,
            "pool": {
                "most": 20,
                "workers": 5,
                "free": 4,
                "queued": [{"request": thread["request"], "priority": False}],
            },
        }
    ]
    document["qemus"] = [
        {
            "pid": 9,
            "tracer": None,
            "threads": [
                {"tid": 9, "name": "qemu-system-x86", "state": "T", "waits_in": "do_signal_stop"},
                {"tid": 10, "name": "CPU 0/KVM", "state": "S", "waits_in": "kvm_vcpu_block"},
            ],
        }
    ]
    document["networks"] = [{"name": "lan7", "dnsmasq": 12, "state": "S"}]
    document["verdicts"] = [
        {
            "verdict": "hook",
            "says": f"virDomainSave on {name} (thread 11) waits for 4.7 s for a hook script of the "
            f"host, process 77 (/etc/hooks/qemu {name}); 1 other call on {name} waits for that.",
            "means": "The daemon waits until the script and all that hold its output have ended.",
            "do": [{"command": f"virsh domjobinfo -- {shlex.quote(name)}", "effect": "shows it"}],
            "thread": 11,
            "behind": [],
        }
    ]
    return document


def test_what_is_no_name_stays() -> None:
    document = full()
    found = redacted(document)
    assert found.pop("redacted") == []
    assert found["verdicts"][0]["says"].startswith("virDomainSave on domain-1 (thread 11) waits")
    assert found["verdicts"][0]["do"][0]["command"] == "virsh domjobinfo -- domain-1"
    (thread,) = found["threads"]
    assert thread["name"] == "vm-domain-1"
    assert thread["frames"] == document["threads"][0]["frames"]
    assert thread["wait"]["what"] == "the lock of domain domain-1"
    assert thread["client"]["command"] == "virsh save domain-1 /path-1"
    assert json.loads(thread["wait"]["command"]["text"])["execute"] == "block_resize"
    for key in ("qemus", "objects", "host", "tool", "seconds", "taken"):
        assert found[key] == document[key]
    assert found["servers"][0]["name"] == "libvirtd"


def test_a_thread_that_took_a_job_keeps_what_it_is_but_not_its_domain() -> None:
    document = full("payroll")
    (job,) = document["domains"][0]["jobs"]
    job["api"] = "init-payroll"
    document["verdicts"][0]["says"] = "payroll is blocked by a job: modify, taken by init-payroll."
    found = redacted(document)
    assert found["domains"][0]["jobs"][0]["api"] == "init-domain-1"
    assert found["verdicts"][0]["says"] == (
        "domain-1 is blocked by a job: modify, taken by init-domain-1."
    )


# What a text of a verdict is given beside names and numbers.
CLAUSES = {
    "age": " for 7.0 s",
    "silence": "; 7 of 7 keepalive messages have no answer, and it will close it in 7.0 s",
}


def test_the_words_of_every_verdict_stay() -> None:
    file = Path(verdicts.__file__).with_name("verdicts.yaml")

    class Seven(dict[str, str]):
        def __missing__(self, key: str) -> str:
            return CLAUSES.get(key, "7")

    for name, entry in yaml.safe_load(file.read_text(encoding="utf-8")).items():
        do = [
            {"command": command.format_map(Seven()), "effect": effect}
            for command, effect in entry.get("do", {}).items()
        ]
        texts = {key: entry[key].format_map(Seven()) for key in ("says", "means")}
        verdict = {"verdict": name, **texts, "do": do, "thread": 11, "behind": []}
        assert redacted({**SAMPLE, "verdicts": [verdict]})["verdicts"] == [verdict]


@pytest.mark.parametrize(
    "name", ["disk", "file", "qcow2", "backup", "libvirt", "Größe-機密", "domain", "name"]
)
def test_the_bundle_of_a_guest_with_another_name_is_the_same(name: str) -> None:
    """Byte by byte: so nothing of the name is in it, even where the name is an everyday word."""
    facts = redacted(full(name))
    plain = redacted(full("ordinary7"))
    for key in ("domains", "threads", "monitors", "servers", "qemus"):
        sentences = {"doing", "what"}
        assert without(facts[key], sentences) == without(plain[key], sentences)
    assert name not in shlex.split(facts["verdicts"][0]["do"][0]["command"])
    assert f" {name} " not in facts["verdicts"][0]["says"].replace("the host", "")


def without(value: Json, keys: set[str]) -> Json:
    if isinstance(value, dict):
        return {key: without(one, keys) for key, one in value.items() if key not in keys}
    return [without(one, keys) for one in value] if isinstance(value, list) else value


def texts_in(value: Json, key: str = "") -> Iterator[tuple[str, Callable[[str], None]]]:
    """The key of each text, and what puts another text there."""
    items = value.items() if isinstance(value, dict) else enumerate(value)
    for name, one in list(items):
        inner = (
            name
            if isinstance(value, dict) and key not in ("arguments", "objects", "object_bytes")
            else key
        )
        if isinstance(one, str):
            yield inner, partial(value.__setitem__, name)
        elif isinstance(one, (dict, list)):
            yield from texts_in(one, inner)


@pytest.mark.parametrize("kind", SECRETS)
def test_no_secret_stays_at_any_place(kind: str) -> None:
    """Each alone: no other place tells the redactor what it is."""
    left = {}
    places = [key for key, _ in texts_in(full())]
    for secret in SECRETS[kind][:3]:
        for number, key in enumerate(places):
            if key in CODE | FIXED:
                continue
            document = full()
            [*texts_in(document)][number][1](secret)
            scan = Scan(json.dumps(redacted(document), ensure_ascii=False).encode())
            if any(scan.form_of(part) for part in parts(secret)):
                left[key, secret] = number
    assert left == {}


def test_no_secret_is_in_a_bundle_that_was_full_of_them(tmp_path: Path) -> None:
    flat = [secret for several in SECRETS.values() for secret in several]
    document = full()
    for at in range(0, len(flat), 40):
        more = full(flat[at])
        for secret, (key, put) in zip(flat[at:], texts_in(more)):
            if key not in CODE | FIXED | {"source", "taken"}:
                put(secret)
        more["verdicts"][0]["says"] = f"{more['domains'][0]['name']} hangs: {flat[at]}."
        for key in (
            "threads",
            "domains",
            "monitors",
            "servers",
            "qemus",
            "neighbours",
            "networks",
            "verdicts",
            "notes",
        ):
            document[key] += more[key]
    files = files_of(document)
    left = {
        (file, secret): form
        for file, content in files.items()
        for scan in [Scan(content)]
        for secret in flat
        for part in parts(secret)
        if (form := scan.form_of(part)) is not None
    }
    assert left == {}
    packed = tmp_path / "b.tar.gz"
    packed.write_bytes(archive.pack(files))
    assert virtrace("bundle", "verify", packed).returncode == 0
    assert virtrace("show", "--full", packed).returncode == 0


def test_the_command_makes_a_bundle_that_all_readers_read(tmp_path: Path) -> None:
    file, packed = tmp_path / "now.snapshot", tmp_path / "b.tar.gz"
    file.write_text(json.dumps(full("zebrafink"), separators=(",", ":")) + "\n")
    done = virtrace("bundle", file, "-o", packed)
    assert done.returncode == 0, done.stderr
    assert virtrace("bundle", "verify", packed).returncode == 0
    shown = virtrace("show", packed)
    assert shown.stdout.startswith("virDomainSave on domain-1 (thread 11) waits")
    assert virtrace("explain", packed).stdout == shown.stdout
    assert json.loads(virtrace("show", "--json", packed).stdout)["redacted"] == []
    page = tmp_path / "page.html"
    assert virtrace("show", "--html", page, packed).returncode == 0
    assert "domain-1" in page.read_text()
    assert virtrace("diff", packed, packed).stdout.startswith("In 0 s")
    names = json.loads((tmp_path / "b.map.json").read_text())["pseudonyms"]
    assert names["domain"] == {"domain-1": "zebrafink"}
    preview = virtrace("bundle", file, "--preview").stdout
    assert "==> snapshot.json" in preview
    assert "[[domain-1]]" in preview
    assert "zebrafink" not in preview


def test_a_bundle_is_not_bundled_again(tmp_path: Path) -> None:
    file = tmp_path / "b.tar.gz"
    file.write_bytes(archive.pack(files_of(full())))
    done = virtrace("bundle", file, "--preview")
    assert done.returncode == 2
    assert "is from a bundle already" in done.stderr


def test_a_kept_kind_stays(tmp_path: Path) -> None:
    file = tmp_path / "now.snapshot"
    file.write_text(json.dumps(full("zebrafink"), separators=(",", ":")) + "\n")
    done = virtrace("bundle", file, "--preview", "--keep", "domain")
    assert done.returncode == 0, done.stderr
    assert "virDomainSave on zebrafink (thread 11)" in done.stdout


def test_a_damaged_snapshot_in_a_bundle_is_a_problem(tmp_path: Path) -> None:
    files = dict(files_of(full()))
    files[SNAPSHOT] = files[SNAPSHOT].replace(b'"seconds"', b'"minutes"')
    file = tmp_path / "b.tar.gz"
    file.write_bytes(archive.pack(files))
    done = virtrace("bundle", "verify", file)
    assert done.returncode == 1
    assert "'snapshot.json' was changed" in done.stdout
    assert "not a whole snapshot" in done.stdout
    assert virtrace("show", file).returncode == 2


def test_an_address_that_is_text_does_not_stay() -> None:
    crash = {"signal": 11, "code": 1, "address": "0x6d65737361676521"}
    says = "The daemon crashed with SIGSEGV at address 0x6d65737361676521 in virFree."
    document = {**full(), "crash": crash}
    document["verdicts"][0].update(verdict="crashed", says=says)
    found = redacted(document)
    assert found["crash"]["address"] is None
    assert "6d65" not in json.dumps(found)
    assert redacted({**document, "crash": {**crash, "address": "0x18"}})["crash"] == {
        **crash,
        "address": "0x18",
    }
