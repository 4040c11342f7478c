"""Ordinary messages and documents, in eight languages: a bundle of each is written, redacted."""

from __future__ import annotations

import json
from pathlib import Path
from xml.sax.saxutils import escape, quoteattr

import pytest
import yaml

from tests.support import samples
from tests.support.paths import DATA
from virtrace.bundle.collect import make
from virtrace.host.facts import HostFacts
from virtrace.trace.format import unavailable
from virtrace.trace.reader import read_trace

FILE = DATA / "ordinary-messages.yaml"
MESSAGES: dict[str, list[str]] = yaml.safe_load(FILE.read_text(encoding="utf-8"))
LOGGED = "2026-11-22T10:30:00.123456Z qemu-system-x86_64: "
NONE = unavailable("not asked")


def documents(messages: list[str]) -> dict[str, str]:
    """Of one language, as they hold what somebody wrote in it."""
    title, about, name = messages[0], "\n".join(messages), messages[3]
    settings = "".join(f"# {each}\nkey_{number} = {json.dumps(each, ensure_ascii=False)}\n"
                       for number, each in enumerate(messages[:5]))  # fmt: skip
    return {
        "xml": f"<domain type='kvm'><name>{escape(name)}</name><title>{escape(title)}</title>"
        f"<description>{escape(about)}</description><devices><disk type='file' device='disk'>"
        f"<source file={quoteattr('/srv/' + messages[4].replace('/', '-'))}/>"
        "<target dev='vda' bus='virtio'/></disk></devices></domain>",
        "log": "".join(f"{LOGGED}{each}\n" for each in messages),
        "settings": settings,
        "backtrace": "".join(
            f"#{number}  0x00007f0011223344 in virReportError (detail=0x7f0011223300 "
            f"{json.dumps(each, ensure_ascii=False)}) at ../src/util/virerror.c:70\n"
            for number, each in enumerate(messages)
        ),
        "json": json.dumps({"execute": "x-note", "arguments": {"note": about, "name": name}}),
    }  # fmt: skip


def bundle(folder: Path, messages: list[str], facts: HostFacts, *further: str) -> None:
    """LeakError where one of them makes it refuse."""
    recorder = samples.Recorder()
    samples.blockinfo(recorder, domain=messages[0], error=messages[0])
    for message in messages:
        error = {"error": {"class": "GenericError", "desc": message}, "id": "libvirt-7"}
        values = {"mon": samples.MON, "text": json.dumps(error), "json": error}
        recorder.add("point", "qmp.reply", values=values)
        recorder.add("point", "error", values={"code": 1, "message": message})
    for text in further:
        values = {"mon": samples.MON, "text": text, "json": json.loads(text)}
        recorder.add("point", "qmp.send", values=values)
    header = {**samples.HEADER, "command": f"virsh desc vm1 {messages[0]}"}
    events = [event.to_record() for event in recorder.events]
    records = [header, *events, samples.footer(recorder.events)]
    make(read_trace(samples.write(folder / "t.jsonl", records)), facts, (), lambda _: None)


def test_there_are_enough() -> None:
    assert len(MESSAGES) == 8
    assert sum(len(each) + len(documents(each)) for each in MESSAGES.values()) >= 200


@pytest.mark.parametrize("language", MESSAGES)
def test_each_message_is_bundled_alone(language: str, tmp_path: Path) -> None:
    for message in MESSAGES[language]:
        bundle(tmp_path, [message], HostFacts(NONE, {}, NONE))


@pytest.mark.parametrize("language", MESSAGES)
def test_messages_and_documents_are_bundled_together(language: str, tmp_path: Path) -> None:
    told = documents(MESSAGES[language])
    domain = {MESSAGES[language][3]: {"xml": told["xml"], "log": told["log"]}}
    settings = {"/etc/libvirt/qemu.conf": told["settings"]}
    facts = HostFacts("QEMU 7.2.22", domain, settings, told["backtrace"])
    bundle(tmp_path, MESSAGES[language], facts, told["json"])
