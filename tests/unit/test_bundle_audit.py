"""The second reader alone: what it finds in files that nobody redacted, and what it cannot see."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from xml.sax.saxutils import quoteattr

import pytest

from tests.support.bundle_secrets import secrets
from tests.support.paths import DATA
from tests.support.redaction import redacted
from virtrace.bundle import audit
from virtrace.bundle.audit import findings
from virtrace.bundle.collect import make
from virtrace.host.facts import HostFacts
from virtrace.trace.format import unavailable
from virtrace.trace.reader import read_trace

SECRETS = secrets()
# A word that no rule knows: docs/bundle.md says so.
UNSEEN = {"user", "name", "password", "serial in groups"}
FILES: dict[str, Callable[[str], str]] = {
    "trace.jsonl": lambda secret: json.dumps({"values": {"message": f"cannot use {secret} now"}}),
    "host/guest-1.log": lambda secret: f"warning: cannot use {secret} now",
    "host/guest-1.xml": lambda secret: f"<disk>\n<source x={quoteattr(secret)}/></disk>",
    "host/settings.txt": lambda secret: f'listen = "{secret}"',
    "REPORT.md": lambda secret: f"- failed: {secret}",
}


@pytest.mark.parametrize("kind", SECRETS)
@pytest.mark.parametrize("file", FILES)
def test_a_secret_is_found_by_its_form(file: str, kind: str) -> None:
    missed = []
    for secret in SECRETS[kind]:
        found = [*findings({file: f"nothing\n{FILES[file](secret)}\n".encode()}, ())]
        if not found:
            missed.append(secret)
            continue
        assert {each.file for each in found} == {file}
        assert {each.line for each in found} <= {2, 3}
        assert found[0].text in secret or secret in found[0].text
    if kind in UNSEEN or (kind, file) == ("serial of digits", "REPORT.md"):
        assert missed
    else:
        assert missed == []


@pytest.mark.parametrize(
    ("file", "text", "place"),
    [
        ("host/guest-1.log", "a\nb 10.1.2.3:22\n", "2:3"),
        ("trace.jsonl", '{}\n{"a":"b 10.1.2.3"}\n', "2:9"),
        ("host/guest-1.xml", "<a>\n <b c='10.1.2.3'/></a>", "2:8"),
    ],
)
def test_a_finding_names_its_place(file: str, text: str, place: str) -> None:
    [found] = findings({file: text.encode()}, ())
    assert found.place == f"{file}:{place}: '10.1.2.3' looks like an IP address"
    assert found.kind == "ip"
    assert [*findings({file: text.encode()}, ("ip",))] == []


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ('{"domain": "backup"}', "domain"),
        ('{"a": {"password": "backup"}}', "secret"),
        ('{"a": "password: backup"}', "secret"),
        ('{"a": "no domain with matching name \'backup\'"}', "text"),
        ('{"a": "json:{\\"b\\": \\"x@y.example\\"}"}', "email"),
        ('{"a": "<domain><name>backup</name></domain>"}', "domain"),
        ('{"a": "x%40y.example%3a1"}', "email"),
        ('{"a": "/path-1/backup/path-2.qcow2"}', "path"),
    ],
)
def test_a_place_for_a_name_holds_a_pseudonym(text: str, kind: str) -> None:
    assert kind in {found.kind for found in findings({"trace.jsonl": text.encode()}, ())}


@pytest.mark.parametrize("name", ["default", "network", "guest", "lan7"])
@pytest.mark.parametrize(
    "word", ["matching name", "domain", "guest", "pool", "volume", "network", "snapshot", "user"]
)
def test_a_name_in_quotes_is_replaced_also_if_it_is_an_everyday_word(word: str, name: str) -> None:
    """Else no bundle could be made."""
    message = f"internal error: {word} '{name}' is not active"
    line = json.dumps({"values": {"message": message}})
    assert [each.text for each in findings({"trace.jsonl": line.encode()}, ())] == [
        f"{word} '{name}'"
    ]
    replaced = json.dumps({"values": {"message": redacted(message, key="message")}})
    assert [*findings({"trace.jsonl": replaced.encode()}, ())] == []
    assert f"'{name}'" not in replaced


HARMLESS = [
    "virDomainEventBlockJob2NewFromObj",
    "2026-11-22T10:30:00.123456+00:00", "0x7f2c5800b6a0", "libvirt.so.0.9000.0", "9.0.0", "::1",
    "virtio-disk0", "block.0.path", "/usr/lib/x86_64-linux-gnu/libvirt.so.0", "127.0.0.1:5900",
    "qemuMonitorJSONQueryNamedBlockNodes", "2147483648 bytes", "wr_highest_offset 32870912345",
    "domain-1", "/var/lib/libvirt/images/path-1.qcow2", "nbd://host-1:10809/path-1", "0000:00:04.0",
    "https://libvirt.org/formatdomain.html", "password=secret-1",
    "cannot find user 'libvirt-qemu'", "Skylake-Server-v5", "CRC32C-NONE",
    "guest=domain-1,debug-threads=on",
]  # fmt: skip


@pytest.mark.parametrize("text", HARMLESS)
def test_what_every_bundle_can_hold_is_passed(text: str) -> None:
    for file in ("trace.jsonl", "host/guest-1.log", "explain.txt"):
        content = json.dumps({"a": text}) if file.endswith("jsonl") else text
        assert [*findings({file: content.encode()}, ())] == []


def test_the_samples_pass() -> None:
    none = unavailable("not asked")
    for sample in sorted((DATA / "explain").iterdir()):
        files = make(read_trace(sample), HostFacts(none, {}, none), (), lambda _: None).files
        assert [*findings(files, ())] == []


def test_it_shares_nothing_with_what_replaces() -> None:
    """But for how the files are opened."""
    shared = {
        name
        for value in vars(audit).values()
        if (name := getattr(value, "__module__", None) or getattr(value, "__name__", ""))
        and str(name).startswith("virtrace.bundle")
    }
    assert shared == {"virtrace.bundle.audit", "virtrace.bundle.files"}
    assert "virtrace.bundle.audit" in sys.modules
