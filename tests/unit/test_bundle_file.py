"""Bundles of built traces: what is in them, what is not, and who can read them."""

from __future__ import annotations

import base64
import contextlib
import copy
import io
import json
import os
import re
import subprocess
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.sax.saxutils import quoteattr

import pytest

from tests.support import pages, samples
from tests.support.command import VIRTRACE
from tests.support.pages import read_bundle
from tests.support.paths import DATA
from tests.support.redaction import redacted
from virtrace.bundle import archive, collect, verify
from virtrace.bundle.audit import findings
from virtrace.bundle.collect import LeakError, make
from virtrace.bundle.pseudonyms import KINDS, Originals, Pseudonyms
from virtrace.bundle.search import leaks
from virtrace.cli.main import main
from virtrace.errors import TraceError
from virtrace.files import open_input, write_new
from virtrace.host.facts import HostFacts
from virtrace.trace.format import unavailable
from virtrace.trace.reader import Trace, read_trace

NO_FACTS = HostFacts(unavailable("not asked"), {}, unavailable("not asked"))
XML = """<domain><name>{domain}</name><devices><disk type='file' device='disk'>
<driver name='qemu' type='qcow2'/><source file='/data/{domain}/{domain}.qcow2'/></disk></devices>
</domain>"""

LOG = "/usr/bin/qemu-system-x86_64 \\\n-name 'guest={},debug-threads=on' \\\n-S\n"


def silent(_: str) -> None:
    pass


def bundle_of(trace: Trace, facts: HostFacts = NO_FACTS, *keep: str) -> collect.Bundle:
    return make(trace, facts, keep, silent)


def virtrace(*arguments: object) -> subprocess.CompletedProcess[str]:
    """In this process, which has all modules at hand."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        words = [*map(str, arguments)]
        try:
            status = main(words)
        except SystemExit as ended:
            status = int(str(ended.code))
    return subprocess.CompletedProcess(words, status, out.getvalue(), err.getvalue())


@pytest.fixture
def packed(tmp_path: Path) -> Path:
    file = tmp_path / "packed.tar.gz"
    file.write_bytes(archive.pack(bundle_of(read_trace(pages.SAMPLE)).files))
    return file


# What is hidden


def named(domain: str, folder: Path) -> tuple[Trace, HostFacts]:
    """The same call, of a guest of this name, which stands wherever a name can stand."""
    recorder = samples.Recorder()
    samples.blockinfo(recorder, domain=domain)
    samples.blockinfo(recorder, disk=f"/data/{domain}/{domain}.qcow2", domain=domain)
    samples.blockinfo(recorder, domain=domain, error=f"no domain with matching name '{domain}'")
    for event in recorder.events:
        if event.name == "qmp.send":
            sent = event.values["json"]
            sent["arguments"] = {
                "filename": "json:" + json.dumps({"file": f"/data/{domain}.qcow2"}),
                "name": domain,
                "query-nodes": True,
            }
            event.values["text"] = json.dumps(sent)
    header = copy.deepcopy(samples.HEADER)
    header["selection"] = {"where": {"domain": domain}, "calls": None, "seconds": None}
    header["recipe"] = {**header["recipe"], "name": "mine", "where": {"domain": domain}}
    records = [event.to_record() for event in recorder.events]
    file = samples.write(
        folder / "named.jsonl", [header, *records, samples.footer(recorder.events)]
    )
    facts = HostFacts(
        "QEMU 7.2.0", {domain: {"xml": XML.format(domain=domain), "log": LOG.format(domain)}}, {}
    )
    return read_trace(file), facts


@pytest.mark.parametrize(
    "domain", ["disk", "file", "qcow2", "1", "x", "name", "libvirt", "Größe-機密", "domain", "a b"]
)
def test_a_bundle_does_not_depend_on_what_a_guest_is_called(domain: str, tmp_path: Path) -> None:
    """Byte by byte: so nothing of the name is in it, even where the name is an everyday word."""
    plain = bundle_of(*named("ordinary-name-7", tmp_path)).files
    assert bundle_of(*named(domain, tmp_path)).files == plain


def test_the_keys_of_the_recipe_format_stay(tmp_path: Path) -> None:
    keys = {"any_of", "called_by", "use_anywhere", "usdt", "where"}
    header = {**copy.deepcopy(samples.HEADER), "recipe": dict.fromkeys((*keys, "acmecorp"), 1)}
    recorder = samples.Recorder()
    samples.blockinfo(recorder)
    events = [event.to_record() for event in recorder.events]
    trace = read_trace(
        samples.write(tmp_path / "t", [header, *events, samples.footer(recorder.events)])
    )
    (tmp_path / "b").write_bytes(archive.pack(bundle_of(trace).files))
    told = read_trace(tmp_path / "b").header["recipe"]
    assert keys <= set(told)
    assert "acmecorp" not in told


def test_a_kernel_that_names_its_owner_is_hidden_as_the_engine_too(tmp_path: Path) -> None:
    """The version of the engine uprobes is the kernel's."""
    records = samples.records()
    kernel = "6.18.44-acmecorp-v7"
    records[0]["host"]["kernel"] = kernel
    records[0]["tool"]["engine"] = {"name": "uprobes", "version": kernel}
    bundle = bundle_of(read_trace(samples.write(tmp_path / "t.jsonl", records)))
    assert not any(b"acmecorp" in content for content in bundle.files.values())
    versions = json.loads(bundle.files["versions.json"])
    assert versions["engine"] == f"uprobes {versions['kernel']}"


def test_what_a_trace_cost_and_whom_it_waited_for_is_told(tmp_path: Path) -> None:
    frames = ["virCondWait+0x1d (libvirt.so.0.9000.0)", "libc.so.6+0x89144", "0x7f12 (in no file)"]
    frames_of = [*frames, unavailable("GDB cannot unwind this frame: outermost")]
    header = copy.deepcopy(samples.HEADER)
    header["limits"] = {"max_stop_ms": 2000, "max_load": 80}
    header["recipe"] = {"name": "mine", "spans": [{"enter": {"who": "backtrace(job->owner)"}}]}
    recorder = samples.Recorder()
    samples.blockinfo(recorder)
    recorder.events[0].values.update(who=frames_of, other=["virCondWait+0x1d", "acmecorp+0x1d"])
    off = {"type": "switched-off", "t_ns": 9, "kind": "point", "name": "qmp.send", "why": "load"}
    events = [event.to_record() for event in recorder.events]
    lines = [header, off, *events, samples.footer(recorder.events)]
    trace = read_trace(samples.write(tmp_path / "t", lines))
    (tmp_path / "b").write_bytes(archive.pack(bundle_of(trace).files))
    told = read_trace(tmp_path / "b")
    assert told.header["limits"] == header["limits"]
    assert told.switched_off == [off]
    # Only what the engine itself made is taken for a backtrace; equal stays equal.
    hidden, other = told.events[0].values["other"]
    assert "acmecorp" not in other
    assert told.events[0].values["who"] == [f"{hidden} (libvirt.so.0.9000.0)", *frames_of[1:]]


def test_a_guest_that_is_called_like_a_pseudonym_is_not_taken_for_one(tmp_path: Path) -> None:
    bundle = bundle_of(*named("domain-1", tmp_path))
    assert bundle.names.map()["domain"] == {"domain-2": "domain-1"}
    for name in ("trace.jsonl", "explain.json", "host/guest-1.xml"):
        assert b"domain-1" not in bundle.files[name]


def test_a_guest_that_is_called_like_an_alias(tmp_path: Path) -> None:
    """The alias stays, as it is libvirt's; the guest's name does not."""
    trace, facts = named("disk0", tmp_path)
    bundle = bundle_of(trace, facts)
    assert bundle.names.map()["domain"] == {"domain-1": "disk0"}
    text = bundle.files["trace.jsonl"].decode()
    assert "/virtio-disk0/" in text
    assert '"domain":"disk0"' not in text


def test_everything_of_one_name_is_one_pseudonym(tmp_path: Path) -> None:
    bundle = bundle_of(*named("kunde", tmp_path))
    assert bundle.names.map()["domain"] == {"domain-1": "kunde"}
    text = bundle.files["trace.jsonl"].decode()
    events = [json.loads(line) for line in text.splitlines()[1:-1]]
    asked = {event["values"]["disk"] for event in events if "disk" in event["values"]}
    assert asked == {"vda", "/path-1/domain-1/path-2.qcow2"}
    assert "no domain with matching name 'domain-1'" in text


@pytest.mark.parametrize(
    ("kind", "text", "expected"),
    [
        ("path", "/a/b/c.qcow2", "/path-1/path-2/path-3.qcow2"),
        ("path", "/var/lib/libvirt/images/a.raw", "/var/lib/libvirt/images/path-1.raw"),
        ("path", "relative/x.so.1.2", "path-1/path-2.so.1.2"),
        ("path", "/usr/bin/qemu-system-x86_64", "/usr/bin/qemu-system-x86_64"),
        ("path", "nbd://u:p@h.example:10809/ex?socket=%2Fs%2Ft.sock",
         "nbd://user-1:secret-1@host-1:10809/path-1?socket=/path-2/path-3.sock"),
        ("path", "rbd:images/vol", "rbd:path-1/path-2"),
        ("path", 'json:{"file": {"filename": "/q/w"}}',
         'json:{"file": {"filename": "/path-1/path-2"}}'),
        ("disk", "vda", "vda"),
        ("disk", "vda[3]", "vda[3]"),
        ("disk", "/x/y.img", "/path-1/path-2.img"),
        ("host", "192.0.2.1", "ipv4-1"),
        ("host", "2001:db8::1", "ipv6-1"),
        ("host", "127.0.0.1", "127.0.0.1"),
        ("mac", "52:54:00:12:34:56", "mac-1"),
        ("device", "libvirt-1-format", "libvirt-1-format"),
        ("anything", "virtio-disk0", "virtio-disk0"),
        ("anything", "blockdev-add", "blockdev-add"),
        ("anything", "geheim", "text-1"),
        ("anything", "/machine/peripheral/ua-geheim/virtio-backend",
         "/machine/peripheral/text-1/virtio-backend"),
        ("message", "Could not open '/g/h': No such file",
         "Could not open '/path-1/path-2': No such file"),
        ("message", "mail a@b.example or 10.1.2.3", "mail email-1 or ipv4-1"),
        ("message", "no route to [fe80::1%eth0]:22 or 10.1.0.0/16",
         "no route to [ipv6-1]:22 or ipv4-1/16"),
        ("message", "\u65e0\u6cd5\u6253\u5f00\u201c10.0.0.1:22\u201d\uff1a\u62d2\u7edd",
         "text-1\u201cipv4-1:22\u201d\uff1atext-2"),
        ("message", "tail: 'M\\303\\274ller'", "tail: 'text-1'"),
        ("message", "2026-11-22T10:00:00.123456Z qemu-system-x86_64: terminating on signal 15",
         "2026-11-22T10:00:00.123456Z qemu-system-x86_64: terminating on signal 15"),
        ("command", "virsh -c qemu:///system domblkinfo geheim vda",
         "virsh -c qemu:///system domblkinfo text-1 vda"),
        ("command", "virsh start --domain='geheimer kunde' && virsh list",
         "virsh start --domain=domain-1 && virsh list"),
        ("command", "sudo virsh -q destroy backup", "sudo virsh -q destroy text-1"),
        ("command", "tool -p backup", "text-1 -p text-2"),
        ("command", "sh -c 'virsh start disk'", "sh -c 'virsh start text-1'"),
        ("command", "set_password vnc backup keep", "set_password vnc secret-1 keep"),
        ("odd", '{"kunde7": 1, "wr_bytes": 2}', '{"text-1": 1, "wr_bytes": 2}'),
        ("odd", '{"function": "kunde7", "port": 22}', '{"function": "text-1", "port": 22}'),
        ("odd", '{"wwn": 5764824129537754068}', '{"wwn": "serial-1"}'),
        ("password", "on the house", "secret-1"),
    ],
)  # fmt: skip
def test_what_becomes_of_a_text(kind: str, text: str, expected: str) -> None:
    assert redacted(text, key=kind) == expected


def test_a_backtrace_keeps_threads_and_functions() -> None:
    text = (
        'Thread 2 (Thread 0x7f0011223344 (LWP 1654) "rpc-libvirtd"):\n'
        "#0  0x00007f0011223344 in virCondWait (c=0x5566778899aa) at ../src/util/virthread.c:148\n"
        'Thread 3 (Thread 0x7f0011223355 (LWP 1655) "{}"):\n'
        '#1  0x00007f0011223366 in acmeWait (name=0x7f0011223377 "{}") at /build/{}/a.c:1'
    )
    shown = redacted(text.replace("{}", "backup"), reader="code")
    assert shown.splitlines()[:2] == text.splitlines()[:2]
    assert "(LWP 1655)" in shown
    assert "acmeWait" in shown
    assert '"backup"' not in shown.splitlines()[3]


def test_text_that_is_not_utf_8_is_one_name(tmp_path: Path) -> None:
    odd = {"bytes": base64.b64encode(b"geheim\xff\xfe").decode()}
    records = samples.records()
    for record in records:
        if "disk" in record.get("values", {}):
            record["values"]["disk"] = odd
    bundle = bundle_of(read_trace(samples.write(tmp_path / "t.jsonl", records)))
    events = [json.loads(line) for line in bundle.files["trace.jsonl"].splitlines()[1:-1]]
    asked = {event["values"]["disk"] for event in events if "disk" in event["values"]}
    assert len(asked) == 1
    assert re.fullmatch("text-[0-9]", asked.pop())


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_what_is_kept_stays_and_nothing_else(kind: str) -> None:
    original = {
        "uuid": "11111111-2222-4333-8444-555555555555", "mac": "52:54:00:12:34:56",
        "ip": "192.0.2.7", "email": "wer@wo.example", "path": "geheim.qcow2",
    }.get(kind, "geheimnis")  # fmt: skip
    for keep, stays in (([kind], True), (sorted(set(KINDS) - {kind}), False)):
        originals = Originals()
        originals.add(kind, original)
        names = Pseudonyms(originals, keep)
        assert (names.add(kind, original) == original) is stays
        assert (original not in names.hidden) is stays


ANYWHERE = [
    "zq7", "zq7-kunde", "kunde zq7 x", "/zq7/a b/zq7.raw", "user@zq7.example", "Zq7Kunde",
    "zq7.example:443", "host=zq7,port=1", "zq7/zq7", "[zq7]", "zq7's", "Could not open 'zq7': no",
    "failed: domain zq7 (zq7) not found", "zq7://zq7:zq7@zq7/zq7?zq7=zq7", 'json:{"zq7":"zq7"}',
    '{"a":"zq7 zq7","zq7kk":1}', "unix:/zq7/zq7.sock", "drive-zq7disk0", "-name zq7 --zq7=zq7",
    "qemuZq7Kunde", "100zq7", "zq7.c:123", "src/zq7/zq7.c", "../zq7", "libvirt-zq7-format",
    "/machine/peripheral/zq7/virtio-backend", "2026-01-01 zq7", "ZQ7=zq7 zq7", "äzq7ö",
    "zq7\n-S \\\nzq7", "<zq7 a='zq7'>zq7</zq7>", "tcp:zq7:22", "rbd:zq7/zq7:id=zq7",
]  # fmt: skip
KEYS = ("zq7", "path", "name", "device", "function", "data", "desc", "alias", "odd", "server", "id")


@pytest.mark.parametrize("secret", ANYWHERE)
def test_a_secret_at_any_place_and_of_any_form_is_hidden(secret: str, tmp_path: Path) -> None:
    recorder = samples.Recorder()
    samples.blockinfo(recorder, domain=secret, disk=secret)
    samples.blockinfo(recorder, error=secret)
    for event in recorder.events:
        if "json" in event.values:
            event.values["json"]["arguments"] = {**dict.fromkeys(KEYS, secret), "list": [secret]}
            event.values["text"] = json.dumps(event.values["json"])
        if event.name == "qemuDomainGetBlockInfo":
            event.values["odd"] = {"unavailable": secret}
            event.values["more"] = {"any": [secret]}
    header = copy.deepcopy(samples.HEADER)
    header["command"] = secret
    header["recipe"] = {**header["recipe"], "about": secret, "name": secret}
    host = {
        **{"type": "host", "collected": "", "domain": secret, "disk": secret, "path": secret},
        **{"xml": f"<disk><source file={quoteattr(secret)}/></disk>", "file_system": "ext2/ext3"},
        **{"stat": {"unavailable": secret}, "image_info": {"filename": secret}, "lvm": {}},
    }
    events = [event.to_record() for event in recorder.events]
    records = [header, *events, host, samples.footer(recorder.events)]
    bundle = bundle_of(read_trace(samples.write(tmp_path / "t.jsonl", records)))
    found = [name for name, text in bundle.files.items() if b"zq7" in text.lower()]
    assert found == []


# The second pass


LEAKY: dict[str, Callable[[str], bytes]] = {
    "raw": lambda secret: secret.encode(),
    "upper case": lambda secret: secret.upper().encode(),
    "JSON": lambda secret: json.dumps(secret).encode(),
    "JSON in JSON": lambda secret: json.dumps(json.dumps(secret)).encode(),
    "URL": lambda secret: b"https://x/?" + b"".join(b"%%%02X" % byte for byte in secret.encode()),
    "hexadecimal": lambda secret: secret.encode().hex().upper().encode(),
    "base64": lambda secret: base64.b64encode(secret.encode()),
    "base64, shifted by 1": lambda secret: base64.b64encode(b"?" + secret.encode() + b"!"),
    "base64, shifted by 2": lambda secret: base64.b64encode(b"??" + secret.encode() + b"!"),
    "base64 of URLs": lambda secret: base64.urlsafe_b64encode(b"\xff\xff" + secret.encode()),
}


@pytest.mark.parametrize("form", sorted(LEAKY))
@pytest.mark.parametrize("secret", ["kundin-webshop7", "grüne機密", 'it\'s "so" \\ <b>&'])
def test_a_leak_is_found(form: str, secret: str) -> None:
    originals = Originals()
    originals.add("domain", secret)
    names = Pseudonyms(originals)
    content = b"before " + LEAKY[form](secret) + b" behind"
    assert [leak.file for leak in leaks({"a": b"nothing", "b": content}, names)] == ["b"]
    assert [leak.original for leak in leaks({secret: b""}, names)] == [secret]


def test_no_bundle_where_something_leaks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a report would that had its words from somewhere else."""
    trace, facts = named("kundin-webshop7", tmp_path)
    monkeypatch.setattr(collect, "markdown", lambda *_: "of kundin-webshop7")
    with pytest.raises(LeakError) as raised:
        bundle_of(trace, facts)
    assert raised.value.what.endswith("REPORT.md:1:4: 'kundin-webshop7' as it is")
    assert raised.value.remedy == "if all names of guests may be known: --keep domain"


def test_a_refusal_never_advises_to_release_all_texts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trace, facts = named("kundin-webshop7", tmp_path)
    monkeypatch.setattr(collect, "markdown", lambda *_: "a\nno domain 'backup', see 10.0.0.1:22")
    with pytest.raises(LeakError) as raised:
        bundle_of(trace, facts)
    assert "REPORT.md:2:25: '10.0.0.1' looks like an IP address" in raised.value.what
    assert "REPORT.md:2:4: \"domain 'backup'\" looks like a name" in raised.value.what
    assert "--keep" not in raised.value.remedy


@pytest.mark.parametrize(
    ("file", "old", "new"),
    [
        ("trace.jsonl", '"domain":"domain-1"', '"domain":"disk"'),
        ("trace.jsonl", "name 'domain-1'", "name 'disk'"),
        ("trace.jsonl", "/domain-1/", "/disk/"),
        ("host/guest-1.xml", "<name>domain-1<", "<name>disk<"),
        ("host/guest-1.log", "guest=domain-1,", "guest=disk,"),
    ],
)
def test_an_everyday_word_is_found_where_a_name_can_stand(
    file: str, old: str, new: str, tmp_path: Path
) -> None:
    bundle = bundle_of(*named("disk", tmp_path))
    text = bundle.files[file].decode()
    assert old in text
    changed = {**bundle.files, file: text.replace(old, new, 1).encode()}
    assert [*leaks(changed, bundle.names)] == []
    found = [*findings(changed, ())]
    assert [each.file for each in found] == [file]
    assert "disk" in found[0].text


# The file


@pytest.mark.parametrize("depth", [100, 150, 200, 250, 300, 400, 600, 900])
def test_a_trace_that_is_nested_deep_is_bundled_or_refused(depth: int, tmp_path: Path) -> None:
    records = samples.records()
    records[0]["recipe"]["deep"] = "DEEP"
    file = samples.write(tmp_path / "deep.jsonl", records)
    file.write_text(file.read_text().replace('"DEEP"', '{"a":' * depth + "1" + "}" * depth))
    with contextlib.suppress(TraceError):
        bundle_of(read_trace(file))


def test_the_same_trace_gives_the_same_bytes(packed: Path, tmp_path: Path) -> None:
    for name in ("a.tar.gz", "b.tar.gz"):
        done = subprocess.run(
            [*(*VIRTRACE, "bundle", str(pages.SAMPLE)), "-o", name],
            env={**os.environ, "PYTHONHASHSEED": str(ord(name[0]))},
            cwd=tmp_path,
            capture_output=True,
        )
        assert done.returncode == 0, done.stderr
    one, other = ((tmp_path / f"{name}.tar.gz").read_bytes() for name in "ab")
    assert one == other


def test_files_of_a_bundle(tmp_path: Path) -> None:
    output = tmp_path / "out.tar.gz"
    done = virtrace("bundle", pages.SAMPLE, "-o", output)
    assert done.returncode == 0, done.stderr
    assert {path.name for path in tmp_path.iterdir()} == {"out.tar.gz", "out.map.json"}
    assert {path.stat().st_mode & 0o777 for path in tmp_path.iterdir()} == {0o600}
    with tarfile.open(output) as tar:
        names = {member.name for member in tar.getmembers()}
        assert {(member.type, member.mtime, member.uid) for member in tar.getmembers()} == {
            (tarfile.REGTYPE, 0, 0)
        }
    assert names == {
        f"virtrace-bundle/{name}"
        for name in (
            *("MANIFEST.json", "REPORT.md", "explain.json", "explain.txt", "page.html"),
            *("recipe.yaml", "trace.jsonl", "versions.json"),
        )
    }
    manifest = json.loads(read_bundle(output)["MANIFEST.json"])
    assert {each["name"] for each in manifest["absent"]} == {
        "host/guest-1.log", "host/guest-1.xml", "host/settings.txt"
    }  # fmt: skip
    assert "map.json" not in str(manifest)
    told = json.loads((tmp_path / "out.map.json").read_text())["pseudonyms"]
    assert told["domain"] == {"domain-1": "vm1"}
    with open_input(output) as file:
        assert verify.problems(str(output), file) == []


def test_nothing_is_replaced(tmp_path: Path) -> None:
    output, other = tmp_path / "out.tar.gz", tmp_path / "out.map.json"
    for existing in (output, other):
        existing.write_text("mine")
        done = virtrace("bundle", pages.SAMPLE, "-o", output)
        assert done.returncode == 2
        assert f"{existing} already exists" in done.stderr
        assert existing.read_text() == "mine"
        existing.unlink()
        assert list(tmp_path.iterdir()) == []


def test_what_cannot_be_written_leaves_nothing(tmp_path: Path) -> None:
    done = virtrace("bundle", pages.SAMPLE, "-o", tmp_path / "none" / "out.tar.gz")
    assert done.returncode == 2
    # On a slow machine its progress comes before.
    what, remedy = done.stderr.splitlines()[-2:]
    assert what.startswith("virtrace: cannot write the map")
    assert remedy.startswith("try: ")
    with pytest.raises(Exception, match="cannot write the map"):
        write_new(Path("/dev/full/x"), "the map", [b""])


def test_an_incomplete_trace_is_bundled_and_told(tmp_path: Path) -> None:
    file = samples.write(tmp_path / "t.jsonl", samples.records()[:-1])
    done = virtrace("bundle", file, "-o", tmp_path / "out.tar.gz")
    assert done.returncode == 4
    assert "no footer" in done.stderr
    report = read_bundle(tmp_path / "out.tar.gz")["REPORT.md"].decode()
    assert "The trace is incomplete: no footer" in report
    assert virtrace("bundle", "verify", tmp_path / "out.tar.gz").returncode == 0


def test_preview_shows_what_would_leave_and_writes_nothing(tmp_path: Path) -> None:
    done = virtrace("bundle", pages.SAMPLE, "--preview")
    assert done.returncode == 0, done.stderr
    assert "- [[domain-1]]" in done.stdout.replace("`", "")
    assert '"domain":"[[domain-1]]"' in done.stdout
    assert "vm1" not in done.stdout
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "arguments", [[], ["-o", "x.tar.gz", "--preview"], ["again"], ["--keep", "all"]]
)
def test_usage(arguments: list[str]) -> None:
    done = virtrace("bundle", pages.SAMPLE, *arguments)
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith("virtrace bundle make: error: ")


def test_a_bundle_is_not_bundled_again(packed: Path, tmp_path: Path) -> None:
    done = virtrace("bundle", packed, "-o", tmp_path / "again.tar.gz")
    assert done.returncode == 2
    assert "is from a bundle already" in done.stderr


# The report


REPORTS = {
    "stopped-qcow2-with-lines-9.0.0": (
        "# `virsh domblkinfo` shows numbers that surprise",
        "1. Take a guest that is shut off (here `domain-1`) with a disk (here `vda`).",
        "2. Run `virsh domblkinfo domain-1 vda`.",
        "- Allocation: 1314816 (1.254 MiB): space used by the file",
        "- `domain-1` `vda`: the trace has no facts of the host about it.",
    ),
    "error-9.0.0": (
        "# `virsh domblkinfo` fails for disk `vdz` of a guest",
        "1. Take a guest (here `domain-1`).",
        "- libvirt's error: invalid argument: invalid path vdz not assigned to domain",
        "Numbers instead of an error for `domain-1` `vdz`, if the guest has such a disk.",
    ),
    "discarded-9.0.0": (
        "1. Take a running guest (here `domain-1`) with a raw disk in a file (here `vda`).",
        "- Allocation: 67108864 (64.000 MiB): end of the farthest write since QEMU opened the "
        "image",
        "- `domain-1` `vda`: Allocation would be ",
    ),
}


@pytest.mark.parametrize("sample", sorted(REPORTS))
def test_report(sample: str) -> None:
    bundle = bundle_of(read_trace(DATA / "explain" / f"{sample}.jsonl"))
    report = bundle.files["REPORT.md"].decode()
    lines = report.splitlines()
    for beginning in REPORTS[sample]:
        assert any(line.startswith(beginning) for line in lines), report
    headings = [line for line in lines if line.startswith("#")]
    assert headings[1:] == [
        "## Description of problem",
        "## Software environment",
        "## Steps to reproduce",
        "## Actual results",
        "## Expected results",
        "## Additional information",
    ]


def test_names_in_a_report_are_no_markup(tmp_path: Path) -> None:
    hostile = "a`b\n# <b>*x*"
    trace, _ = named(hostile, tmp_path)
    report = bundle_of(trace, NO_FACTS, *KINDS).files["REPORT.md"].decode()
    assert "\n# " not in report[2:]
    assert "<b>" not in report
    assert "&lt;b>" in report


def test_progress_where_it_takes_long(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("virtrace.cli.bundle._PATIENCE", 0.0)
    done = virtrace("bundle", pages.SAMPLE, "-o", tmp_path / "x.tar.gz")
    assert done.returncode == 0
    assert re.fullmatch(r"(\[ +[0-9.]+ s\] [a-z, ]+\n)+", done.stderr)
    assert done.stderr.endswith("packing it\n")


# Who reads it


@pytest.mark.parametrize("sample", sorted((DATA / "explain").iterdir()), ids=lambda path: path.stem)
def test_explain_says_the_same(
    sample: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Up to the pseudonyms: with the map, the two are equal."""
    bundle, output = bundle_of(read_trace(sample)), tmp_path / "b.tar.gz"
    output.write_bytes(archive.pack(bundle.files))
    assert main(["explain", "--json", str(sample)]) == main(["explain", "--json", str(output)])
    original, _, text = capsys.readouterr().out.partition("}\n{")
    original, text = original + "}", "{" + text
    assert text == bundle.files["explain.json"].decode()
    back = {name: real for kind in bundle.names.map().values() for name, real in kind.items()}
    for pseudonym in sorted(back, key=len, reverse=True):
        text = text.replace(pseudonym, json.dumps(back[pseudonym])[1:-1])
    assert json.loads(text) == json.loads(original)


def test_every_command_reads_a_bundle(packed: Path, tmp_path: Path) -> None:
    for words in (["show"], ["show", "--summary"], ["show", "--json"], ["explain"]):
        done = virtrace(*words, packed)
        assert (done.returncode, done.stderr) == (0, "")
        assert "domain-1" in done.stdout
    assert virtrace("diff", packed, packed).returncode == 0
    assert virtrace("export", packed, "--to", "mermaid", "-o", tmp_path / "m").returncode == 0
    # It comes as far as to ask for a daemon.
    assert virtrace("replay", packed, "-p", "999999999").returncode == 3


def test_verify(packed: Path, tmp_path: Path) -> None:
    done = virtrace("bundle", "verify", packed)
    assert (done.returncode, done.stderr) == (0, "")
    files = dict(read_bundle(packed))
    for change, what in (
        ({"explain.txt": b"other"}, "'explain.txt' was changed"),
        ({"more.txt": b""}, "'more.txt' is not in the manifest"),
        ({"page.html": None}, "'page.html' is missing"),
        ({"MANIFEST.json": b"[]"}, "MANIFEST.json is missing or is not a manifest"),
        ({"trace.jsonl": b"{}\n"}, "is not a virtrace trace"),
    ):
        changed: dict[str, Any] = {**files, **change}
        file = tmp_path / "changed.tar.gz"
        file.write_bytes(
            archive.pack({name: text for name, text in changed.items() if text is not None})
        )
        done = virtrace("bundle", "verify", file)
        assert (done.returncode, done.stderr) == (1, "")
        assert what in done.stdout
