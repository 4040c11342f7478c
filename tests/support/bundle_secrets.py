"""Secrets of many kinds, made up anew, and the places that each can stand in.

Nothing here is taken from what redacts: a secret is known by its own text alone.
"""

from __future__ import annotations

import base64
import html
import json
import random
from collections.abc import Callable, Iterator
from urllib.parse import quote
from xml.sax.saxutils import escape, quoteattr

import yaml

from tests.support.paths import DATA

SEED = 20261129
_FOLDERS = ("home", "srv", "mnt", "opt")
_NAMES = ["müllerbank", "Grünwald AG", "kundin", "acmecorp", "客户", "顧客データ", "банк", "ग्राहक",
          "société", "weiß&söhne", "zebrafink", "oakhurst", "quisling", "tanaka"]  # fmt: skip


def secrets() -> dict[str, list[str]]:
    """By kind; the same in each run, and each one once."""
    rng = random.Random(SEED)

    def number(least: int, most: int) -> str:
        return str(rng.randint(least, most))

    def port() -> str:
        return number(1024, 65535)

    def word() -> str:
        return _word(rng)

    made: dict[str, Callable[[], str]] = {
        "IPv4": lambda: ".".join(number(11, 223) for _ in range(4)),
        "IPv4 with zeros": lambda: ".".join(f"0{number(11, 99)}" for _ in range(4)),
        "IPv4 and port": lambda: f"10.{number(1, 255)}.{number(1, 255)}.7:{port()}",
        "network": lambda: f"172.{number(16, 31)}.{number(1, 255)}.0/{number(12, 30)}",
        "network with its mask": lambda: f"10.{number(1, 255)}.{number(1, 255)}.0/255.255.255.0",
        "IPv4 list": lambda: ",".join(f"192.168.7.{number(2, 254)}" for _ in range(3)),
        "IPv6": lambda: f"2001:db8:{_hex(rng, 4)}::{_hex(rng, 4)}:{number(1, 9999)}",
        "IPv6 with zone": lambda: f"[fe80::{_hex(rng, 4)}:{_hex(rng, 4)}%eth{number(0, 9)}]:22",
        "long IPv6": lambda: ":".join(_hex(rng, 4) for _ in range(8)),
        "MAC": lambda: ":".join(_octets(rng)),
        "MAC with hyphens": lambda: "-".join(_octets(rng)).upper(),
        "MAC in threes": lambda: ".".join("".join(_octets(rng)[at : at + 2]) for at in (0, 2, 4)),
        "MAC in halves": lambda: f"52a4b7-{_hex(rng, 6)}",
        "bare MAC": lambda: "52a4" + "".join(_octets(rng))[:8],
        "MAC of digits": lambda: "-".join(number(10, 99) for _ in range(6)),
        "UUID": lambda: "-".join(_hex(rng, length) for length in (8, 4, 4, 4, 12)),
        "bare UUID": lambda: "a1" + _hex(rng, 30),
        "WWN": lambda: "0x5000c5" + _hex(rng, 10),
        "WWN with colons": lambda: ":".join([*_octets(rng), *_octets(rng)[:2]]),
        "NAA": lambda: "naa.6" + _hex(rng, 31),
        "IQN": lambda: f"iqn.20{number(10, 25)}-04.com.{word()}:disk{number(100, 999)}",
        "serial": lambda: f"WD-{_token(rng, 11).upper()}{number(10, 99)}",
        "serial of digits": lambda: number(10**9, 10**14),
        "serial in groups": lambda: "-".join(number(10000, 99999) for _ in range(4)),
        "hexadecimal key": lambda: _hex(rng, 47) + "f",
        "base64 key": lambda: base64.b64encode(rng.randbytes(27)).decode(),
        "token": lambda: "eyJ" + _token(rng, 40),
        "password": lambda: f"{_token(rng, 8)}!{rng.choice('&<%$#')}{number(10, 99)}",
        "host": lambda: f"{word()}-{number(1, 99)}.{word()}.example",
        "host and port": lambda: f"{word()}{number(1, 99)}.intern:{port()}",
        "e-mail": lambda: f"{word()}.{word()}@{word()}.test",
        "user": lambda: f"{word()}{number(100, 999)}",
        "name": lambda: f"{rng.choice(_NAMES)} {word()}-{number(10, 99)}",
        "path": lambda: f"/{rng.choice(_FOLDERS)}/{word()}/{word()}.qcow2",
        "path to a known file": lambda: f"/usr/local/{word()}-{word()}/bin/qemu-system-x86_64",
        "device": lambda: f"/dev/disk/by-id/wwn-0x5000c5{_hex(rng, 10)}",
    }
    found: dict[str, list[str]] = {}
    for kind, make in made.items():
        values: dict[str, None] = {}
        while len(values) < 12:
            values[make()] = None
        found[kind] = list(values)
    return found


def _hex(rng: random.Random, length: int) -> str:
    """With a letter and a digit, and no zero in front."""
    digits = [
        rng.choice("123456789abcdef"),
        *(rng.choice("0123456789abcdef") for _ in range(length - 3)),
    ]
    return "".join([*digits, rng.choice("abcdef"), rng.choice("23456789")])


def _octets(rng: random.Random) -> list[str]:
    return ["52", *(_hex(rng, 3)[1:] for _ in range(5))]


def _word(rng: random.Random) -> str:
    """No word of any language."""
    return "".join(rng.choice("bdfgklmnprstvz") + rng.choice("aeiou") for _ in range(4)) + "x"


def _token(rng: random.Random, length: int) -> str:
    return "".join(
        rng.choice("ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnpqrstuvwxyz23456789")
        for _ in range(length)
    )


MESSAGES: list[str] = yaml.safe_load((DATA / "message-places.yaml").read_text(encoding="utf-8"))
JSON_KEYS = (
    *("filename", "name", "device", "host", "server", "password", "serial", "desc", "alias", "id"),
    *("text", "note", "node-name", "x-anything", "data", "path"),
)


def places(secret: str) -> Iterator[tuple[str, str]]:
    """Kind of text, and a text of that kind that has the secret in it; what is redacted as one."""
    for number, message in enumerate(MESSAGES):
        yield f"message {number}", message.replace("{}", secret)
    octal = _octal(secret)
    yield "message in C's locale", f"tail: cannot open '{octal}' for reading"
    yield "message in C's locale, unquoted", f"stat: {octal}: No such file"
    for key in JSON_KEYS:
        document = {"execute": "blockdev-add", "arguments": {key: secret, "list": [secret]}}
        yield f"json {key}", json.dumps(document)
    yield "json in a string", json.dumps({"file": "json:" + json.dumps({"driver": secret})})
    yield "json key", json.dumps({secret: 1})
    yield "uri", f"nbd://{quote(secret, safe='')}:10809/{quote(secret, safe='')}"
    for attribute in ("file", "dev", "name", "host", "address", "uuid", "value", "bridge"):
        yield f"xml {attribute}", f"<disk><source {attribute}={quoteattr(secret)}/></disk>"
    for element in ("name", "serial", "wwn", "uuid", "description", "cookie", "model"):
        yield f"xml <{element}>", f"<disk><{element}>{escape(secret)}</{element}></disk>"
    word = secret.replace("'", "'\\''")
    yield "command", f"virsh domblkinfo '{word}' vda"
    yield "command with an option", f"virsh start --domain '{word}' --force"
    yield "command in the shell", f"echo '{word}' && ssh '{word}'"
    yield "log", f"-drive 'file={word.replace(',', ',,')},if=none' \\"
    yield "log line", f"2026-11-22T10:00:00.1Z qemu-system-x86_64: warning: {secret}: broken"
    for form in ('"{}"', "'{}'", '["a", "{}"]', '[\n  "{}",\n  # {}\n]', '"""{}"""', "{} # {}"):
        yield f"setting {form}", f"vnc_listen = {form.replace('{}', secret)}\n"
    yield "setting without a key", f"{secret}\n"
    yield "setting after a comment", f'# {secret}\nuser = "{secret}"\n'
    yield "backtrace", f'#1  0x00007f1 in virFree (ptr=0x1 "{octal}") at ../src/util/viralloc.c:70'


class Scan:
    """Looks for secrets that it knows, in any of the encodings that a bundle's files have."""

    def __init__(self, content: bytes) -> None:
        self._content, self._lower = content, content.lower()

    def form_of(self, secret: str) -> str | None:
        """How the secret stands there."""
        raw = secret.encode()
        texts = {
            secret, html.escape(secret), escape(secret), quote(secret), quote(secret, safe=""),
            json.dumps(secret)[1:-1], json.dumps(json.dumps(secret)[1:-1])[1:-1], _octal(secret),
            raw.hex(),
        }  # fmt: skip
        for text in texts:
            if text.lower().encode() in self._lower:
                return text
        for shift in range(3):
            code = base64.b64encode(bytes(shift) + raw)
            if code[-(-shift * 8 // 6) : (shift + len(raw)) * 8 // 6] in self._content:
                return "base64"
        return None


def _octal(text: str) -> str:
    """As a program of the locale C shows it."""
    return "".join(f"\\{byte:03o}" if byte > 126 else chr(byte) for byte in text.encode())


def parts(secret: str) -> list[str]:
    """What tells as much as the whole: the address without its port, a folder of a path."""
    found = [secret]
    if secret.startswith("/"):
        common = {"home", "srv", "mnt", "opt", "usr", "local", "bin", "dev", "disk", "by-id"}
        found += [part for part in secret.split("/") if part and part not in common]
        found = [part for part in found if part != "qemu-system-x86_64"]
    for mark in ("]:", "/", ":", ","):
        if mark in secret and not secret.startswith("/") and len(secret.partition(mark)[0]) > 6:
            found.append(secret.partition(mark)[0].strip("["))
    return found
