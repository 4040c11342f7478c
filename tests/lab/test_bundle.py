"""A guest full of secrets, traced and bundled: none of them leaves, and the answer is the same."""

from __future__ import annotations

import base64
import copy
import html
import json
import os
import re
import shlex
import shutil
import subprocess
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote
from xml.etree import ElementTree
from xml.sax.saxutils import escape, quoteattr

import pytest
import yaml

from tests.lab.conftest import bring_up
from tests.support.command import virtrace
from tests.support.intact import assert_untraced_and_intact
from virtrace.bundle.pseudonyms import KINDS
from virtrace.cli.main import main
from virtrace.lab.daemon import Lab
from virtrace.lab.stage import Stage
from virtrace.recipe import catalogue

MAIN, ORDINARY = "Größe-機密7", "disk"
INNER = "acmecorp"
FOLDER, FILE = "geheimer ordner", f"backup-{INNER}2026.qcow2"
# What each is, and the value.
SECRETS = {
    "domain": MAIN,
    "domain inside of other words": INNER,
    "domain that is not there": "niemand-da-4711",
    "folder": FOLDER,
    "file": FILE,
    "backing file": "grundlage-jahresabschluss.qcow2",
    "second image": "zweites_abbild+v2.img",
    "log of the serial port": "konsole-protokoll.log",
    "channel": "agent-kanal-xyzzy",
    "VNC socket": "bildschirm.sock9",
    "UUID": "5ec2e7aa-1b2c-4d3e-8f90-a1b2c3d4e5f6",
    "UUID of SMBIOS in QMP": "0badcafe-0000-4111-8222-333344445555",
    "serial": "WD-WX31A77-4711X",
    "second serial": "S3Z8NB0K12345T",
    "WWN": "5000c500a1b2c3d4",
    "serial of the machine": "CZ1234ABCD-GEHEIM",
    "asset tag": "Inventar 00815-B",
    "MAC": "52:54:00:a7:b8:c9",
    "second MAC": "0a:1b:2c:3d:4e:5f",
    "IPv4": "203.0.113.77",
    "second IPv4": "198.51.100.23",
    "IPv4 in prose": "192.0.2.199",
    "IPv6": "2001:db8:77::beef:1",
    "IPv6 in prose": "2001:db8:cafe::42",
    "host": "speicher7.intern.kundin.example",
    "second host": "ceph-mon-a.kundin.example",
    "user": "m.mustermann83",
    "second user": "client.nova-geheim",
    "e-mail": "erika@kundin.example",
    "e-mail in an error": "hans.wurst@firma-geheim.test",
    "pool": "pool-kundendaten",
    "volume": "volume-8f3b-lohnbuch",
    "snapshot": "vor-der-fusion",
    "second snapshot": "снимок-секрет",
    "bitmap": "bitmap-nachtsicherung",
    "title": "Lohnbuchhaltung der Kundin",
    "description": 'Nicht weitergeben: Vertrag "Albatros" <streng>',
    "metadata text": "Kostenstelle 99-42-X",
    "metadata attribute": "abteilung-schattenwirtschaft",
    "password": "Tr0ub4dor&3-horse",
    "VNC password": "vnc-pw!",
    "HMP password": "hmp-passwort-xx",
    "base64 key": base64.b64encode(b"sehr geheimer schluessel 1234567").decode(),
    "IV": "AAECAwQFBgcICQoLDA0ODw==",
    "password with quotes": 'it\'s "quoted" \\ back',
    "token": "eyJhbGciOiJIUzI1NiJ9.c2VjcmV0.x",
    "id of a secret": "geheimnis-objekt-1",
    "path in JSON in a string": "/tresor/tief drin/erste.qcow2",
    "path in JSON in JSON in a string": "/tresor/noch tiefer/zweite.raw",
    "path in a URI": "/exporte/kundin eins.img",
    "export": "ausfuhr-kundin",
    "name on a command line": "opt/kundin.owner",
    "value on a command line": "betreiber=Kundin GmbH & Co",
    "environment": "KUNDIN_LIZENZ",
    "value of the environment": "lizenz-A1B2-C3D4",
    "alias": "ua-leitung-zur-bank",
    "label": "beschriftung-finanzamt",
    "free text": "streng vertrauliche anmerkung ÄÖÜ",
    "comment": "kommentar: bitte löschen",
    "disk that is not there": "/nirgends/kundin/fehlt.qcow2",
    "name with a percent sign": "100%kundin",
    "name that is JSON": '{"kundin":"json-name"}',
}


def test_there_are_enough() -> None:
    assert len(SECRETS) >= 60
    assert len(set(SECRETS.values())) == len(SECRETS)


@dataclass
class Seeded:
    lab: Lab
    trace: Path
    folder: Path


@pytest.fixture(scope="module")
def seeded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Seeded]:
    lab = bring_up()
    try:
        yield _seeded(lab, tmp_path_factory.mktemp("seeded"))
    finally:
        lab.down()


def _seeded(lab: Lab, folder: Path) -> Seeded:
    images = Stage(lab).images / FOLDER
    run = lab.system.run
    run("mkdir", str(images), as_daemon=True)
    base, image = images / SECRETS["backing file"], images / FILE
    second = images / SECRETS["second image"]
    run("qemu-img", "create", "-q", "-f", "qcow2", str(base), "64M", as_daemon=True)
    backing = ("-b", base.name, "-F", "qcow2")
    run("qemu-img", "create", "-q", "-f", "qcow2", *backing, str(image), as_daemon=True)
    run("qemu-img", "create", "-q", "-f", "qcow2", str(second), "8M", as_daemon=True)
    for name in (ORDINARY, INNER):
        run("qemu-img", "create", "-q", "-f", "raw", str(images / name), "8M", as_daemon=True)
    for name, xml in (
        (MAIN, _main(lab, images)),
        (ORDINARY, _plain(lab, ORDINARY, images)),
        (INNER, _plain(lab, INNER, images)),
    ):
        file = folder / "domain.xml"
        file.write_text(xml, encoding="utf-8")
        lab.virsh_checked("define", str(file))
        lab.virsh_checked("start", name)
    lab.virsh_checked("snapshot-create-as", MAIN, SECRETS["snapshot"])
    recipe = folder / "everything.yaml"
    recipe.write_text(yaml.safe_dump(_recipe()), encoding="utf-8")
    trace = folder / "trace.jsonl"
    script = folder / "commands"
    script.write_text("\n".join(_commands(image)), encoding="utf-8")
    command = ["sh", "-c", f"{_words(lab.virsh_command())} < {script}; true"]
    done = virtrace(
        *("record", str(recipe), "-p", str(lab.pid), "--engine", "gdb", "-o", str(trace)),
        "--host-facts",
        *("--", *command),
    )
    assert done.returncode == 0, done.stderr
    return Seeded(lab, trace, folder)


def _words(command: list[str]) -> str:
    return " ".join(f"'{word}'" for word in command)


def _recipe() -> dict[str, Any]:
    """The recipe blockinfo, and all QMP and all errors besides."""
    recipe = copy.deepcopy(dict(catalogue.find_recipe("blockinfo").raw))
    for point in recipe["points"]:
        if point["name"] != "qmp.reply":
            point["anywhere"] = True
    return {**recipe, "name": "everything", "about": f"For {SECRETS['host']}. Secret."}


def _disk(file: Path, kind: str, target: str, bus: str, more: str) -> str:
    return f"""
    <disk type='file' device='disk'>
      <driver name='qemu' type='{kind}'/><source file={quoteattr(str(file))}/>
      <target dev='{target}' bus='{bus}'/>{more}
    </disk>"""


def _plain(lab: Lab, name: str, images: Path) -> str:
    return f"""<domain type='qemu'><name>{name}</name><memory unit='MiB'>16</memory>
    <os><type arch='x86_64' machine='pc'>hvm</type></os>
    <devices><emulator>{lab.system.emulator}</emulator>
    <controller type='usb' model='none'/><memballoon model='none'/>
    {_disk(images / name, "raw", "vda", "virtio", "")}
    </devices></domain>"""


def _main(lab: Lab, images: Path) -> str:
    text = {name: escape(value) for name, value in SECRETS.items()}
    owner = quoteattr(
        f"name={SECRETS['name on a command line']},string="
        f"{SECRETS['value on a command line']} {SECRETS['IPv4 in prose']}"
        f" {SECRETS['e-mail']}"
    )
    return f"""<domain type='qemu' xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0'>
    <name>{text["domain"]}</name><uuid>{text["UUID"]}</uuid>
    <title>{text["title"]}</title><description>{text["description"]}</description>
    <metadata><a:owner xmlns:a='http://kundin.example/ns'
      a:unit={quoteattr(SECRETS["metadata attribute"])}>{text["metadata text"]}</a:owner></metadata>
    <memory unit='MiB'>32</memory>
    <sysinfo type='smbios'><system>
      <entry name='serial'>{text["serial of the machine"]}</entry></system>
      <chassis><entry name='asset'>{text["asset tag"]}</entry></chassis></sysinfo>
    <os><type arch='x86_64' machine='pc'>hvm</type><smbios mode='sysinfo'/></os>
    <devices><emulator>{lab.system.emulator}</emulator>
    <controller type='usb' model='none'/><memballoon model='none'/>
    {_disk(images / FILE, "qcow2", "vda", "virtio", f"<serial>{text['serial']}</serial>")}
    {
        _disk(
            images / SECRETS["second image"],
            "qcow2",
            "hdb",
            "ide",
            f"<serial>{text['second serial']}</serial><wwn>{text['WWN']}</wwn>",
        )
    }
    <interface type='user'><mac address='{text["MAC"]}'/><model type='e1000'/>
      <alias name='{text["alias"]}'/></interface>
    <serial type='file'><source path={quoteattr(str(images / SECRETS["log of the serial port"]))}/>
    </serial>
    <channel type='unix'>
      <source mode='bind' path={
        quoteattr(str(images / SECRETS["channel"]))
    }/><target type='virtio' name='org.kundin'/></channel>
    <graphics type='vnc' socket={quoteattr(str(images / SECRETS["VNC socket"]))}
      passwd='{text["VNC password"]}'/>
    </devices>
    <qemu:commandline><qemu:arg value='-fw_cfg'/><qemu:arg value={owner}/>
      <qemu:env name={quoteattr(SECRETS["environment"])}
        value={quoteattr(SECRETS["value of the environment"])}/></qemu:commandline></domain>"""


def _commands(image: Path) -> Iterator[str]:
    for domain, disk in ((MAIN, "vda"), (ORDINARY, "vda"), (INNER, "vda"), (MAIN, "hdb")):
        yield f"domblkinfo {domain} {disk}"
    yield f"domblkinfo {MAIN} '{image}'"
    yield f"domblkinfo {MAIN} '{SECRETS['disk that is not there']}'"
    yield f"domblkinfo {MAIN} '{SECRETS['e-mail in an error']}'"
    yield f"domstate '{SECRETS['domain that is not there']}'"
    for execute, arguments in _qmp():
        asked = json.dumps({"execute": execute, "arguments": arguments})
        quoted = asked.replace("\\", "\\\\").replace('"', '\\"')
        yield f'qemu-monitor-command {MAIN} "{quoted}"'


def _qmp() -> Iterator[tuple[str, dict[str, Any]]]:
    """What libvirt's own commands carry; QEMU need not understand all of it."""
    secret = SECRETS.__getitem__
    for number, name in enumerate(("password", "base64 key", "password with quotes")):
        ids = secret("id of a secret") if number == 0 else f"other{number}"
        yield (
            "object-add",
            {
                **{"qom-type": "secret", "id": ids, "data": secret(name), "iv": secret("IV")},
                "keyid": secret("id of a secret"),
            },
        )
    yield "set_password", {"protocol": "vnc", "password": secret("VNC password")}
    hmp = f"change vnc password {secret('HMP password')}"
    yield "human-monitor-command", {"command-line": hmp}
    inner = json.dumps({"driver": "raw", "filename": secret("path in JSON in JSON in a string")})
    deep = {
        "driver": "qcow2",
        "file": {"driver": "file", "filename": secret("path in JSON in a string")},
        "backing": f"json:{inner}",
    }
    uri = f"nbd://{quote(secret('user'))}@{secret('host')}:10809/{secret('export')}"
    mounted = f"nfs://{secret('second IPv4')}{quote(secret('path in a URI'))}"
    for filename in (f"json:{json.dumps(deep)}", uri, mounted):
        yield "blockdev-add", {"driver": "file", "node-name": "x", "filename": filename}
    yield (
        "blockdev-add",
        {
            **{"driver": "rbd", "pool": secret("pool"), "image": secret("volume")},
            **{"user": secret("second user"), "snapshot": secret("second snapshot")},
            "server": [{"host": secret("second host"), "port": "6789"}],
        },
    )
    yield (
        "blockdev-add",
        {
            "driver": "https",
            "url": "https://x.invalid/",
            "cookie": secret("token"),
            "server": {"type": "inet", "host": secret("IPv4"), "port": "1"},
        },
    )
    address = {"type": "inet", "data": {"host": secret("IPv6"), "port": "22"}}
    yield (
        "chardev-add",
        {"id": secret("label"), "backend": {"type": "socket", "data": {"addr": address}}},
    )
    yield "block-dirty-bitmap-add", {"node": "libvirt-1-format", "name": secret("bitmap")}
    yield "netdev_add", {"type": "user", "id": "n", "macaddr": secret("second MAC")}
    yield (
        "announce-self",
        {
            "free": secret("free text"),
            "x-note": secret("comment"),
            "at": f"reached at {secret('IPv6 in prose')} or by mail",
            "uuid": secret("UUID of SMBIOS in QMP"),
            "name": secret("name with a percent sign"),
            secret("name that is JSON"): 1,
            "odd": secret("name that is JSON"),
        },
    )


def bundled(
    seeded: Seeded, name: str, *options: str, env: dict[str, str] | None = None
) -> dict[str, bytes]:
    output = seeded.folder / f"{name}.tar.gz"
    done = virtrace("bundle", str(seeded.trace), "-o", str(output), *options, env=env)
    assert done.returncode == 0, done.stderr
    assert output.stat().st_mode & 0o777 == 0o600
    with tarfile.open(output) as archive:
        return {
            member.name: archive.extractfile(member).read()  # type: ignore[union-attr]
            for member in archive.getmembers()
        }


def occurrences(files: dict[str, bytes], secret: str) -> list[tuple[str, str]]:
    """Where it stands, in five encodings; knows nothing of how a bundle is made."""
    raw = secret.encode()
    forms: dict[str, set[bytes]] = {
        "raw": {raw, html.escape(secret).encode(), escape(secret).encode()},
        "JSON": {
            json.dumps(secret)[1:-1].encode(),
            json.dumps(secret, ensure_ascii=False)[1:-1].encode(),
        },
        "URL": {quote(secret).encode(), quote(secret, safe="").encode()},
        "hex": {raw.hex().encode(), raw.hex().upper().encode()},
        "base64": set(),
    }
    for shift in range(3):
        encoded = base64.b64encode(b"\0" * shift + raw).rstrip(b"=")
        whole = len(encoded) if (shift + len(raw)) % 3 == 0 else len(encoded) - 1
        forms["base64"].add(encoded[(0, 2, 3)[shift] : whole])
    return [
        (name, form)
        for name, content in files.items()
        for form, needles in forms.items()
        if any(
            needle in content or needle.lower() in content.lower()
            for needle in needles
            if form != "base64"
        )
        or (form == "base64" and any(needle in content for needle in needles))
    ]


@pytest.fixture(scope="module")
def redacted(seeded: Seeded) -> dict[str, bytes]:
    return bundled(seeded, "redacted")


def test_no_secret_leaves(seeded: Seeded, redacted: dict[str, bytes]) -> None:
    everything = [word for kind in KINDS for word in ("--keep", kind)]
    released = bundled(seeded, "released", *everything)
    # What is not in the one would be missed in the other.
    assert [name for name, secret in SECRETS.items() if not occurrences(released, secret)] == []
    left = {name: occurrences(redacted, secret) for name, secret in SECRETS.items()}
    assert {name: found for name, found in left.items() if found} == {}


def test_names_that_are_everyday_words_do_not_show_as_names(redacted: dict[str, bytes]) -> None:
    """`disk` is in every bundle; nothing says that a guest is called so."""
    assert ORDINARY == "disk"
    text = b"\n".join(redacted.values()).decode()
    for place in (
        *('"domain":"disk"', '"domain": "disk"', "<name>disk<", "guest=disk,", '/disk"'),
        *("domblkinfo disk ", "(disk, ", "domain=disk", "domain-disk", "-disk/", "'disk'"),
    ):
        assert place not in text.replace("virtio-disk", ""), place
    assert '"domain":"domain-2"' in text


def test_what_maintainers_ask_for_is_there(redacted: dict[str, bytes]) -> None:
    files = {name.removeprefix("virtrace-bundle/"): text for name, text in redacted.items()}
    assert json.loads(files["MANIFEST.json"])["absent"] == []
    versions = json.loads(files["versions.json"])
    assert versions["qemu"].startswith("QEMU ")
    assert versions["machine"] == os.uname().machine
    guests = [ElementTree.fromstring(files[f"host/guest-{number}.xml"]) for number in (1, 2, 3)]
    names = [guest.findtext("name") for guest in guests]
    assert len({*names}) == 3
    assert all(re.fullmatch("domain-[123]", str(name)) for name in names)
    for number, name in enumerate(names, 1):
        log = files[f"host/guest-{number}.log"].decode()
        assert f"-name guest={name},debug-threads=on" in log
        # From its last start on.
        assert log.count("starting up libvirt version") == 1
    # What the lab sets is all that is not the default.
    assert "stdio_handler" in files["host/settings.txt"].decode()
    report = files["REPORT.md"].decode()
    assert f"- Hypervisor: {versions['qemu']}" in report
    for heading in ("Steps to reproduce", "Actual results", "Expected results"):
        assert f"\n## {heading}\n" in report


def test_explain_says_the_same(
    seeded: Seeded, redacted: dict[str, bytes], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["explain", "--json", str(seeded.trace)]) == 0
    original = json.loads(capsys.readouterr().out)
    of_bundle = json.loads(redacted["virtrace-bundle/explain.json"])
    [told] = [json.loads(file.read_text()) for file in seeded.folder.glob("redacted.map.json")]
    real = {name: text for kind in told["pseudonyms"].values() for name, text in kind.items()}
    assert as_it_was(of_bundle, real) == as_it_was(original, {})


def as_it_was(value: Any, real: dict[str, str]) -> Any:
    """With the names in place of their pseudonyms, longest first; commands as their words."""
    if isinstance(value, str):
        pattern = "|".join(map(re.escape, sorted(real, key=len, reverse=True))) or "(?!)"
        return re.sub(pattern, lambda found: real[found[0]], value)
    if isinstance(value, list):
        return [as_it_was(each, real) for each in value]
    if isinstance(value, dict):
        # Of a name with a space a shell wants quotes, of a pseudonym it does not.
        words = {"command": shlex.split(value["command"])} if "command" in value else {}
        return {key: as_it_was(each, real) for key, each in {**value, **words}.items()}
    return value


ASCII = {**os.environ, "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}


def test_a_bundle_is_the_same_in_any_locale(
    seeded: Seeded, redacted: dict[str, bytes], tmp_path: Path
) -> None:
    assert bundled(seeded, "ascii", env=ASCII) == redacted
    made = ["localedef", "-i", "de_DE", "-f", "ISO-8859-1", f"{tmp_path}/de_DE.ISO-8859-1"]
    if (
        shutil.which("localedef") is None
        or subprocess.run(made, capture_output=True).returncode > 1
    ):
        pytest.skip("the sources of locales are not installed")
    latin = {**os.environ, "LC_ALL": "de_DE.ISO-8859-1", "LOCPATH": str(tmp_path)}
    assert bundled(seeded, "latin", env=latin) == redacted


def test_a_log_that_is_missing_is_told_without_the_name_of_the_guest(seeded: Seeded) -> None:
    log = seeded.lab.folder / "cache/libvirt/qemu/log" / f"{MAIN}.log"
    away = log.rename(log.with_suffix(".away"))
    try:
        files = bundled(seeded, "without-log", env=ASCII)
    finally:
        away.rename(log)
    absent = json.loads(files["virtrace-bundle/MANIFEST.json"])["absent"]
    assert [each["why"] for each in absent] == ["there is no log"]
    assert occurrences(files, MAIN) == []
    assert b"\\303" not in b"".join(files.values())


def test_backtrace_on_request(seeded: Seeded) -> None:
    files = bundled(seeded, "with-backtrace", "--backtrace")
    threads = files["virtrace-bundle/host/backtrace.txt"].decode()
    assert threads.startswith("Thread ")
    assert "poll" in threads
    assert_untraced_and_intact(seeded.lab.pid)
    assert seeded.lab.virsh("domblkinfo", "vm1", "vda").returncode == 0


def test_of_another_daemon_nothing_is_asked(seeded: Seeded) -> None:
    files = bundled(seeded, "elsewhere", "-p", str(os.getpid()))
    manifest = json.loads(files["virtrace-bundle/MANIFEST.json"])
    reasons = {each["why"] for each in manifest["absent"]}
    assert len(reasons) == 1
    assert "is not a daemon of the build that was traced" in reasons.pop()
