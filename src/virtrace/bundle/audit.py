"""The independent audit: searches the finished files for private data, by rules of its own.

It shares no list, pattern or code with the redaction, so that it may find what the redaction
does not know. It knows how pseudonyms look, and which values of a trace only look private:
build-ids, addresses in memory, sizes and times.
"""

from __future__ import annotations

import ipaddress
import json
import re
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from html.parser import HTMLParser
from urllib.parse import unquote
from xml.etree import ElementTree

from virtrace.bundle.files import file_pieces
from virtrace.trace.bundle_reader import TRACE
from virtrace.trace.format import Json
from virtrace.trace.target import modules_of

_MANIFEST = "MANIFEST.json"
_WRITTEN = frozenset(
    {"explain.txt", "explain.json", "page.html", "snapshot.txt", "REPORT.md", _MANIFEST}
)
_DEEPEST = 20


@dataclass(frozen=True)
class SuspiciousText:
    """A suspicious text. kind: of names, by which it can be released. what: what it looks like."""

    file: str
    line: int
    column: int
    text: str
    kind: str
    what: str

    @property
    def place(self) -> str:
        return f"{self.file}:{self.line}:{self.column}: {self.text!a} looks like {self.what}"


def findings(files: Mapping[str, bytes], keep: Collection[str]) -> Iterator[SuspiciousText]:
    """Yield each suspicious text once a file, except for the kinds that are released."""
    known = _known(files)
    for file in files:
        reader = _Auditor(file, frozenset(keep), known)
        line = 1
        for piece in file_pieces(files, file):
            text = piece.decode("utf-8", "surrogatepass")
            yield from reader.findings(text, line)
            line += text.count("\n")
    reader = _Auditor("the names of the files", frozenset(keep), known)
    yield from reader.findings("\n".join(files), 1)


def _known(files: Mapping[str, bytes]) -> frozenset[str]:
    """Return what looks private in every bundle: build-ids of the trace, sums of the manifest."""
    found: set[str] = set()
    try:
        if TRACE in files:
            first = next(iter(file_pieces(files, TRACE)), b"")
            header = json.loads(first.partition(b"\n")[0])
            # The page shows the beginning of build-ids.
            ids = [str(module["build_id"]) for module in modules_of(header)]
            found.update(ids, (each[:12] for each in ids))
        listed = json.loads(files[_MANIFEST])["files"]
        found.update(str(entry["sha256"]) for entry in listed)
    except (ValueError, KeyError, TypeError, RecursionError):
        # If something is missing here, it is reported as a finding.
        pass
    return frozenset(found)


# Kinds of text

_PSEUDONYM = re.compile(
    r"(?:domain|host|uuid|path|serial|mac|ipv4|ipv6|user|email|pool|volume|snapshot|secret|text)"
    r"-[0-9]+(?:\.[a-z][a-z0-9]*(?:\.[0-9]+)*)?"
)
_HEX = "[0-9A-Fa-f]"
# Average length of consecutive letters or digits in text that a person wrote.
_LEAST_OF_A_WORD = 2.4
# Characters that end a path in a text, for a character class.
_ENDS = (
    "\\s'\"<>,;:|()\\[\\]{}&`\u00ab\u00bb\u2018-\u201f\u2039\u203a\u3000-\u303f\uff00-\uff0f"
    "\uff1a-\uff1f"
)


@dataclass(frozen=True)
class _Rule:
    """A rule.

    kinds: the first one names its findings; the rule is off if any of them is released.
    accepts: whether a match, in its text, is harmless.
    everywhere: whether it also applies to files that are written anew from the redacted trace,
    which have sums and times as text.
    """

    kinds: tuple[str, ...]
    what: str
    pattern: re.Pattern[str]
    accepts: Callable[[re.Match[str]], bool] = lambda _: False
    everywhere: bool = True


def _no_address(found: re.Match[str]) -> bool:
    text = found[0].partition("%")[0].strip("[]")
    if ":" not in text:
        numbers = [int(part) for part in text.split(".")]
        if max(numbers) > 255:
            return True
        text = ".".join(map(str, numbers))
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return True
    return address.is_loopback or address.is_unspecified


def _is_memory(found: re.Match[str]) -> bool:
    """Whether it is an address in a process or the kernel, or too short for an id of a disk."""
    return bool(
        re.fullmatch(
            "0x(?:0*[0-9a-f]{1,8}|0{0,4}(?:7[ef]|5[56])[0-9a-f]{10}|(?:aaaa|ffff)[0-9a-f]{8,12})",
            found[0],
        )
    )


def _is_measure(found: re.Match[str]) -> bool:
    before = found.string[max(0, found.start() - 60) : found.start()]
    behind = found.string[found.end() : found.end() + 12]
    return bool(
        _MEASURE.search(before)
        or re.match(r"\s?(?:[kKMGT]?i?B|[num]?s|bytes|sec|[KMGT])\b", behind)
    )


_MEASURE = re.compile(
    r"(?i)size|mem|byte|capac|alloc|physic|offset|len|limit|max|min|iops|period|quota|share|time"
    r"|freq|sector|block|cluster|pid|tid|thread|process|adjust|width|speed|rate|ram|count|total"
    r"|used|free|start|end|pos|line|_ns|_ms|_us|lwp"
)


def _is_written(found: re.Match[str]) -> bool:
    """Whether it is made of words, like names in C; in random text, these are shorter."""
    text = found[0].rstrip("=")
    pieces = re.findall("[A-Z]?[a-z]+|[A-Z]+|[0-9]+", text)
    kinds = {piece[-1].isdigit() for piece in pieces}, text.lower() != text, text.upper() != text
    if kinds != ({True, False}, True, True) or _PSEUDONYM.search(text):
        return True
    return sum(map(len, pieces)) > _LEAST_OF_A_WORD * len(pieces)


def _is_public_host(found: re.Match[str]) -> bool:
    """Whether it is a host where bugs of libvirt and QEMU are reported."""
    name = found[0].lower()
    return name.endswith((".libvirt.org", ".qemu.org")) or name in (
        *("libvirt.org", "qemu.org", "github.com", "gitlab.com", "bugzilla.redhat.com", "w3.org"),
    )


def _is_hidden(text: str) -> bool:
    """Whether it is empty, a pseudonym, or a list of pseudonyms."""
    rest = _PSEUDONYM.sub("", text)
    return not re.search(r"[^\W_]", rest)


def _is_of_nobody(found: re.Match[str]) -> bool:
    """Whether it is an account that each host has: ``root@host-1``."""
    user, _, host = found[0].rpartition("@")
    return _is_hidden(host) and (user in _EVERYWHERE or _is_hidden(user))


def _is_no_name(text: str) -> bool:
    """Whether it is not a name. Paths have rules of their own."""
    return text.startswith("/") or _is_hidden(text)


def _is_no_quoted_name(found: re.Match[str]) -> bool:
    """Whether what is quoted behind a word such as `domain` or `user` is not a name."""
    word, quoted = found[1].lower(), found[2] or found[3] or found[4]
    # JSON in quotes is parsed separately.
    is_json = (found[2] or "").startswith("{")
    is_of_nobody = word == "user" and quoted in _ACCOUNTS
    return is_json or is_of_nobody or _is_no_name(quoted)


def _is_between_pseudonyms(path: str) -> bool:
    """Whether some folder between pseudonyms is not one: only files may have common names there."""
    folders = path.split("/")[1:-1]
    hidden = [bool(_PSEUDONYM.fullmatch(folder)) for folder in folders]
    return True in hidden and not all(hidden[hidden.index(True) :])


_ACCOUNTS = frozenset({"root", "qemu", "kvm", "libvirt-qemu", "libvirt", "nobody"})
_EVERYWHERE = _ACCOUNTS | {"default"}
_NO_VALUE = frozenset(
    {"on", "off", "yes", "no", "true", "false", "none", "null", "auto", "missing", "unavailable"}
)
_RULES = (
    _Rule(
        ("email",),
        "an e-mail address",
        re.compile(r"(?<![\w.+-])[\w.+-]+@\w[\w-]*(?:\.[\w-]+)*"),
        _is_of_nobody,
    ),
    _Rule(
        ("uuid",),
        "a UUID",
        re.compile(rf"(?<!{_HEX}){_HEX}{{8}}(?:-{_HEX}{{4}}){{3}}-{_HEX}{{12}}(?!{_HEX})"),
    ),
    _Rule(
        ("mac",),
        "a MAC address",
        re.compile(
            rf"(?<![\w])(?:{_HEX}{{2}}([-:. _]){_HEX}{{2}}(?:\1{_HEX}{{2}}){{4,18}}"
            rf"|{_HEX}{{6}}[-.:]{_HEX}{{6}}|{_HEX}{{4}}([-.:]){_HEX}{{4}}\2{_HEX}{{4}}|{_HEX}{{1,2}}(?::{_HEX}{{1,2}}){{5}})(?![\w]|:{_HEX})"
        ),
    ),
    _Rule(
        ("ip",),
        "an IP address",
        re.compile(r"(?<![\w.])[0-9]{1,3}(?:\.[0-9]{1,3}){3}(?!\w|\.\w)"),
        _no_address,
    ),
    _Rule(
        ("ip",),
        "an IP address",
        re.compile(
            rf"(?<![\w:.])(?:{_HEX}{{0,4}}:){{2,7}}(?:{_HEX}{{1,4}}|[0-9.]{{7,15}})?(?:%\w+)?(?![\w:])"
        ),
        _no_address,
    ),
    _Rule(
        ("serial", "secret", "text"),
        "a number of a device, or a key",
        re.compile(
            rf"(?<![0-9A-Za-z])(?:0x{_HEX}+|(?=[0-9]*[A-Fa-f])(?=[A-Fa-f]*[0-9]){_HEX}{{12,}})(?![0-9A-Za-z])"
        ),
        _is_memory,
    ),
    _Rule(
        ("serial", "secret", "text"),
        "a number of a device, or a key",
        re.compile(r"(?<![\w.,])[0-9]{9,}(?![\w.,])"),
        _is_measure,
        everywhere=False,
    ),
    _Rule(
        ("serial", "secret", "text"),
        "a number of a device",
        re.compile(r"(?<!\w)(?=(?:[A-Z]*[0-9]){2})(?=[0-9]*[A-Z])[A-Z0-9]{9,}(?!\w)"),
    ),
    _Rule(
        ("serial", "text"),
        "a name of storage",
        re.compile(r"\b(?:iqn|nqn|eui|naa)\.[\w:.-]{8,}"),
        lambda found: bool(_PSEUDONYM.search(found[0])),
    ),
    _Rule(
        ("secret", "text"),
        "a key",
        re.compile(r"(?<![\w/+=.-])[A-Za-z0-9+/_-]{16,}={0,2}(?![\w/+=])"),
        _is_written,
    ),
    _Rule(
        ("path",),
        "a file of this host",
        re.compile(
            r"(?<![\w.*)])/(?:home|root|mnt|media|srv|data|tmp|opt|net|nfs|exports?|vms?|images?|storage"
            r"|backups?|var/tmp|usr/local|var/lib/libvirt/images|dev/(?:mapper|disk/by-[a-z]+))"
            rf"/([^{_ENDS}]+)"
        ),
        lambda found: bool(_PSEUDONYM.match(found[1])) or not found[1].strip(".…*/\\`"),
    ),
    _Rule(
        ("host",),
        "a host's name",
        re.compile(
            r"(?i)(?<![\w.@-])(?:[a-z0-9][\w-]*\.)+(?:com|net|org|edu|gov|example|test|local|lan"
            r"|internal|intern|corp|home|de|fr|eu|uk|cn|jp|kr|ru)(?![\w-]|\.\w)"
        ),
        _is_public_host,
    ),
    _Rule(
        ("secret",),
        "a password",
        re.compile(
            r"(?i)\b\w*(?:passwor[dt]|passwd|passphrase|secret|token)\w*[\"']?\s*[=:]\s*[\"']?([^\s\"',;<>{}\[\]()]+)"
        ),
        lambda found: _is_no_name(found[1]) or found[1] in _NO_VALUE,
    ),
    _Rule(
        ("text", "domain", "pool", "volume", "host", "user", "snapshot"),
        "a name",
        re.compile(
            r"(?i)\b(matching name|domain|guest|pool|volume|network|snapshot|user|server at)"
            r"(?: named| name)?\s+(?:'([^'\n]+)'|\"([^\"\n]+)\"|“([^”\n]+)”)"
        ),
        _is_no_quoted_name,
    ),
    _Rule(
        ("domain",),
        "a guest's name",
        re.compile(r"\bguest=([^,'\"\s]+)"),
        lambda found: _is_hidden(found[1]),
    ),
    _Rule(
        ("path",),
        "a folder of this host",
        re.compile(rf"(?<![\w.*)])/(?!machine|objects|chardevs|backend)[^{_ENDS}]+"),
        lambda found: not _is_between_pseudonyms(found[0]),
    ),
    _Rule(
        ("text",),
        "a name byte by byte",
        re.compile(r"(?:\\[0-3][0-7]{2}){2,}|(?:\\x[0-9a-fA-F]{2}){2,}"),
    ),
)
# Keys of JSON, elements and attributes whose values are always names or secrets.
_TELLING = {
    **dict.fromkeys(("domain", "dom", "vm", "guest"), "domain"),
    **dict.fromkeys(("hostname", "peer_hostname"), "host"),
    **dict.fromkeys(("uuid", "genid"), "uuid"),
    **dict.fromkeys(("serial", "wwn", "wwpn", "wwnn"), "serial"),
    **dict.fromkeys(("mac", "macaddr"), "mac"),
    **dict.fromkeys(("username", "user"), "user"),
    **dict.fromkeys(("password", "passwd", "passphrase"), "secret"),
}


# Where the texts are


class _Auditor:
    """Audits one file: judges each text once, and reports it once."""

    def __init__(self, file: str, keep: frozenset[str], known: frozenset[str]) -> None:
        self._file = file
        self._known = known
        self._keep = keep
        self._rules = [
            rule
            for rule in _RULES
            if not keep.intersection(rule.kinds) and (rule.everywhere or file not in _WRITTEN)
        ]
        self._seen: set[tuple[str, str]] = set()
        self._told: set[str] = set()

    def findings(self, content: str, line: int) -> Iterator[SuspiciousText]:
        """Yield the findings in a part of the file. line: number of its first line."""
        for number, text in enumerate(_units(self._file, content), line):
            for value, key in _values(self._file, text):
                if (value, key) in self._seen:
                    continue
                self._seen.add((value, key))
                for shown, kind, what in self._private(value, key):
                    if shown not in self._told:
                        self._told.add(shown)
                        yield self._finding(
                            content if text is content else text, number, shown, kind, what
                        )

    def _finding(self, text: str, line: int, shown: str, kind: str, what: str) -> SuspiciousText:
        at = max(text.find(shown), text.find(json.dumps(shown)[1:-1]), 0)
        before = text[:at]
        column = at - before.rfind("\n")
        return SuspiciousText(self._file, line + before.count("\n"), column, shown, kind, what)

    def _private(self, value: str, key: str) -> Iterator[tuple[str, str, str]]:
        kind = _TELLING.get(key)
        is_told = value in _EVERYWHERE or re.fullmatch("[0-9]{1,5}|on|off", value)
        if kind is not None and kind not in self._keep and not is_told and not _is_no_name(value):
            yield value, kind, f"a value of `{key}`"
        decoded = unquote(value) if "%" in value else value
        for text in dict.fromkeys((value, decoded)):
            for rule in self._rules:
                for found in rule.pattern.finditer(text):
                    if not (found[0] in self._known or _is_hidden(found[0]) or rule.accepts(found)):
                        yield found[0], rule.kinds[0], rule.what


def _units(file: str, content: str) -> Iterator[str]:
    """Yield what is parsed separately: a record, or a whole document."""
    if file == TRACE or not file.endswith((".json", ".xml", ".html")):
        yield from content.split("\n")
    else:
        yield content


def _values(file: str, text: str) -> Iterator[tuple[str, str]]:
    """Yield the texts of a document with their keys; the keys are texts too."""
    if file == TRACE or file.endswith(".json"):
        try:
            document = json.loads(text) if text.strip() else None
        except (ValueError, RecursionError):
            yield text, ""
            return
        yield from _of_json(document, "", 0)
    elif file.endswith(".xml"):
        yield from _of_xml(text)
    elif file.endswith(".html"):
        page = _Page()
        page.feed(text)
        page.close()
        yield from ((each, "") for each in page.texts)
    else:
        yield text, ""


def _of_json(value: Json, key: str, depth: int) -> Iterator[tuple[str, str]]:
    if isinstance(value, str):
        yield from _of_text(value, key, depth)
    elif isinstance(value, list):
        for each in value:
            yield from _of_json(each, key, depth)
    elif isinstance(value, dict):
        for name, each in value.items():
            yield name, ""
            # Keys of a recipe name places, not values; those of its filters name values.
            inside = key == "recipe" and name != "where"
            yield from _of_json(each, "recipe" if inside else name, depth)


def _of_text(text: str, key: str, depth: int) -> Iterator[tuple[str, str]]:
    body = text.removeprefix("json:").strip()
    if body.startswith(("{", "[")) and depth < _DEEPEST:
        try:
            document = json.loads(body)
        except (ValueError, RecursionError):
            pass
        else:
            yield from _of_json(document, key, depth + 1)
            return
    if body.startswith("<") and depth < _DEEPEST:
        yield from _of_xml(text)
    else:
        yield text, key


def _of_xml(text: str) -> Iterator[tuple[str, str]]:
    try:
        top = ElementTree.fromstring(text)
    except (ElementTree.ParseError, ValueError):
        yield text, ""
        return
    if top.tag == "domain":
        yield top.findtext("name") or "", "domain"
    for element in top.iter():
        tag = element.tag.rpartition("}")[2]
        yield tag, ""
        for name, value in element.attrib.items():
            # The attribute `domain` is a part of an address on a bus.
            yield (
                f"{name}={value}" if value.isdecimal() else value,
                "" if name == "domain" else name,
            )
        for part in (element.text, element.tail):
            if part and part.strip():
                yield f"{tag} {part}" if part.isdecimal() else part, tag


class _Page(HTMLParser):
    """Collects the texts of a page and of attributes that show text; skips script and style."""

    def __init__(self) -> None:
        super().__init__()
        self.texts: list[str] = []
        self._program = False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._program = tag in ("script", "style")
        self.texts += [value for name, value in attrs if value and name in ("title", "aria-label")]

    def handle_endtag(self, tag: str) -> None:
        self._program = False

    def handle_data(self, data: str) -> None:
        if not self._program:
            self.texts.append(data)
