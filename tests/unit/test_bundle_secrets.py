"""Secrets of every kind, at every place, in every encoding: none of them leaves."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

import pytest
from detect_secrets.core.scan import scan_file
from detect_secrets.settings import default_settings

from tests.support import redaction, samples
from tests.support.bundle_secrets import Scan, parts, places, secrets
from virtrace.bundle.collect import make
from virtrace.bundle.pseudonyms import KINDS
from virtrace.bundle.redact.texts import Texts
from virtrace.bundle.redact.trace import TraceRedactor
from virtrace.host.facts import HostFacts
from virtrace.trace.format import Record
from virtrace.trace.reader import Trace, read_trace

SECRETS = secrets()
PSEUDONYM = re.compile(f"(?:{'|'.join(KINDS)}|ipv[46])-[0-9]+[a-z0-9.]*")


def redacted(kind: str, text: str) -> str:
    """kind: of a text in SECRETS' places; it begins with how the text is read."""
    readers = {
        "message": "prose",
        "xml": "xml",
        "command": "command",
        "log": "log",
        "setting": "settings",
        "backtrace": "code",
    }
    reader = next((reader for begin, reader in readers.items() if kind.startswith(begin)), "")
    return redaction.redacted(text, reader=reader, key="anything")


def test_there_are_enough() -> None:
    assert len({secret for several in SECRETS.values() for secret in several}) >= 400


@pytest.mark.parametrize("kind", SECRETS)
def test_no_secret_stays_at_any_place(kind: str) -> None:
    """Each alone: no other place tells the redactor what it is."""
    left = {}
    for secret in SECRETS[kind]:
        for place, text in places(secret):
            shown = redacted(place, text)
            scan = Scan(shown.encode("utf-8", "surrogatepass"))
            for part in parts(secret):
                if scan.form_of(part):
                    left[place, secret] = shown
    assert left == {}


def everything(folder: Path) -> tuple[Trace, HostFacts]:
    """A trace and a host that have every secret somewhere, each kind at several places."""
    all_places = [place for place, _ in places("x")]
    at: dict[str, list[str]] = {}
    flat = [secret for several in SECRETS.values() for secret in several]
    for number, secret in enumerate(flat):
        texts = dict(places(secret))
        for step in range(5):
            place = all_places[(number * 7 + step * 13) % len(all_places)]
            at.setdefault(place.partition(" ")[0], []).append(texts[place])
    recorder = samples.Recorder()
    samples.blockinfo(recorder, domain=flat[0], disk=flat[1])
    for number, text in enumerate(at["json"]):
        values = {"mon": samples.MON, "text": text, "json": json.loads(text)}
        recorder.add("point", "qmp.send", values=values)
        odd = {f"x{number}": text, "why": {"unavailable": f"no {flat[number % len(flat)]} here"}}
        recorder.add("point", "error", values={"message": text, **odd})
    for text in (*at["message"], *at["uri"]):
        recorder.add("point", "error", values={"code": 1, "message": text})
    header = copy.deepcopy(samples.HEADER)
    header["command"] = "; ".join(at["command"])
    header["host"].update(
        kernel="6.1.0-zebrafink7-amd64", warnings=[f"busy: {each}" for each in flat[:40]]
    )
    header["recipe"] = {
        **{"virtrace": 1, "name": "acmecorp audit", "about": "; ".join(flat[40:80])},
        **{"try": f"virsh start '{flat[80]}'", "where": {"vm_name": flat[81]}},
        "spans": [{"name": "zebrafinkStart", "enter": {"oakhurst_id": "dom->quisling"}}],
    }
    header["probes"][0].update(name="zebrafinkStart", taken="quislingHook", why=f"no {flat[82]}")
    hosts = [
        {"type": "host", "collected": "", "domain": flat[83], "disk": flat[84], "path": flat[85],
         "xml": text, "stat": {"unavailable": f"no {flat[88]}"}, "file_system": "xfs",
         "image_info": {"filename": flat[number % 400]},
         "lvm": {"lv_full_name": flat[-number % 400]}}
        for number, text in enumerate(at["xml"], 1)
    ]  # fmt: skip
    events = [event.to_record() for event in recorder.events]
    footer = samples.footer(recorder.events)
    footer["hits"] = {"zebrafinkStart": 7, **footer["hits"]}
    trace = read_trace(samples.write(folder / "t.jsonl", [header, *events, *hosts, footer]))
    xml = f"<domain type='kvm'><name>{escape(flat[86])}</name>{''.join(at['xml'])}</domain>"
    told = {"xml": xml, "log": "\n".join(at["log"])}
    settings = {f"/home/{each}/.config/libvirt/qemu.conf": "".join(at["setting"]) for each in "ab"}
    facts = HostFacts("QEMU 7.2.22", {flat[87]: told}, settings, "\n".join(at["backtrace"]))
    return trace, facts


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, bytes]:
    return make(*everything(tmp_path_factory.mktemp("all")), (), lambda _: None).files


def test_no_secret_is_in_a_bundle_that_was_full_of_them(bundle: Mapping[str, bytes]) -> None:
    own = ("zebrafink", "oakhurst", "quisling", "acmecorp")
    flat = [part for several in SECRETS.values() for secret in several for part in parts(secret)]
    left = {
        (file, secret): form
        for file, content in bundle.items()
        for scan in [Scan(content)]
        for secret in (*flat, *own)
        if (form := scan.form_of(secret)) is not None
    }
    assert left == {}


def test_a_detector_of_secrets_finds_none(bundle: Mapping[str, bytes], tmp_path: Path) -> None:
    """But for build-ids, sums in the manifest and hashes of the page's own program."""
    header = json.loads(bundle["trace.jsonl"].partition(b"\n")[0])
    public = {module["build_id"] for module in header["target"]["modules"]}
    public |= {*re.findall("'(sha256-[^']+)'", bundle["page.html"].decode())}
    public |= {each["sha256"] for each in json.loads(bundle["MANIFEST.json"])["files"]}
    found = {}
    for name, content in bundle.items():
        file = tmp_path / name.replace("/", "_")
        file.write_bytes(content)
        with default_settings():
            for secret in scan_file(str(file)):
                value = str(secret.secret_value)
                if value not in public and not PSEUDONYM.fullmatch(value):
                    found[name, secret.line_number] = (secret.type, secret.secret_value)
    assert found == {}


def test_the_detector_finds_what_is_not_redacted(tmp_path: Path) -> None:
    file = tmp_path / "plain"
    file.write_text("".join(f'key = "{each}"\n' for each in SECRETS["base64 key"]))
    with default_settings():
        assert len([*scan_file(str(file))]) > 5


# Passwords and names that are everyday words, or numbers


def told_of(folder: Path, secret: str) -> Mapping[str, bytes]:
    """A bundle of what has a password, and a guest's name in values of the user's own recipe."""
    recorder = samples.Recorder()
    samples.blockinfo(recorder, error=f"cannot set password: {secret}")
    documents: tuple[dict[str, Any], ...] = (
        {"execute": "set_password", "arguments": {"protocol": "vnc", "password": secret}},
        {"execute": "x", "arguments": {"command-line": f"set_password vnc {secret} keep"}},
        {"execute": "x", "arguments": {"command-line": f"change vnc password {secret}"}},
        {"execute": "x", "arguments": {"x-vnc-password": secret, "auth_token": secret}},
        {"error": {"desc": f"password '{secret}' is too short"}},
        {"return": {"name": secret}, "id": "libvirt-7"},
    )
    for number, document in enumerate(documents):
        name = "qmp.reply" if "execute" not in document else "qmp.send"
        values = {"mon": samples.MON, "text": json.dumps(document), "json": document}
        recorder.add("point", name, values={**values, "number": number})
    names = {"vm_name": secret, "told": secret, "where": {"unavailable": f"no guest '{secret}'"}}
    recorder.add("point", "error", values=names)
    header = copy.deepcopy(samples.HEADER)
    header["command"] = (
        f"virsh set-user-password vm1 root {secret}; virsh start {secret}; virsh 'start {secret}'; "
        f"tool --password {secret} --db-password={secret}"
    )
    header["recipe"] = {
        **{"virtrace": 1, "name": "mine", "where": {"vm_name": secret}},
        "points": [
            {"name": "error", "capture": {"vm_name": "vm->def->name", "told": "arg"}},
            *samples.HEADER["recipe"]["points"],
        ],
    }
    events = [event.to_record() for event in recorder.events]
    records = [header, *events, samples.footer(recorder.events)]
    trace = read_trace(samples.write(folder / "t.jsonl", records))
    xml = (
        f"<domain><name>{secret}</name><devices><graphics type='vnc' passwd='{secret}'/>"
        f"<interface><source network='{secret}' portgroup='{secret}'/></interface></devices>"
        "</domain>"
    )
    log = f"-name guest={secret},debug-threads=on \\\n-spice password={secret}"
    settings = {"/etc/libvirt/qemu.conf": f'vnc_password = "{secret}"\nuser = {secret} # x\n'}
    return make(
        trace, HostFacts("QEMU 7.2.22", {secret: {"xml": xml, "log": log}}, settings), (), print
    ).files


@pytest.mark.parametrize("secret", ["backup", "12345", "1234567890", "disk", "none", "on"])
def test_a_password_or_name_that_is_an_everyday_word_or_a_number(
    secret: str, tmp_path: Path
) -> None:
    """Byte by byte the same as of one that stands nowhere else, so that nothing of it is told."""
    assert told_of(tmp_path, secret) == told_of(tmp_path, "zebrafink7")


@pytest.mark.parametrize("mon", [samples.MON, None])
def test_a_reply_is_not_taken_for_one_about_qemu(mon: str | None, tmp_path: Path) -> None:
    """Two guests whose commands have the same id, and of which the recipe tells no monitor."""
    sent = {"execute": "query-cpu-definitions", "id": "libvirt-7"}
    reply = {"return": [{"name": "zebrafink", "typename": "kundin-cpu"}], "id": "libvirt-7"}
    recorder = samples.Recorder()
    for name, document in (("qmp.send", sent), ("qmp.reply", reply)):
        values = {"text": json.dumps(document), "json": document, **({"mon": mon} if mon else {})}
        recorder.add("point", name, values=values)
    events = [event.to_record() for event in recorder.events]
    records = [samples.HEADER, *events, samples.footer(recorder.events)]
    trace = read_trace(samples.write(tmp_path / "t.jsonl", records))
    files = make(trace, HostFacts("QEMU 7.2.22", {}, {}), (), lambda _: None).files
    for content in files.values():
        assert b"zebrafink" not in content
        assert b"kundin" not in content


@pytest.mark.parametrize(
    ("key", "path", "kind"),
    [
        ("vm_name", "vm->def->name", "domain"),
        ("x", "domain->name", "domain"),
        ("x", "pool->def->name", "pool"),
        ("x", "voldef->name", "volume"),
        ("x", "disk->src->path", "path"),
        ("x", "def->uuid", "uuid"),
        ("x", "arg", "text"),
    ],
)
def test_what_a_value_is_its_capture_says(key: str, path: str, kind: str) -> None:
    header = copy.deepcopy(samples.HEADER)
    header["recipe"] = {"name": "mine", "points": [{"name": "error", "capture": {key: path}}]}
    event = {"type": "point", "seq": 0, "t_ns": 1, "name": "error", "values": {key: "backup"}}

    def redact(texts: Texts) -> Record:
        redactor = TraceRedactor(texts, header)
        redactor.record(header)
        return redactor.record(event)

    [value] = redaction.in_two_passes(redact)["values"].values()
    assert re.fullmatch(f"{kind}-[0-9]+", value)
