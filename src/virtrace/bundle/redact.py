"""Replace what tells of a host, its guests and its users, in all that a bundle is made of.

Nothing is replaced by looking for what may be private: a text stays only where its place, its
form or a list says that it is harmless. Each text is read by its structure (JSON, also inside
of strings, XML, URIs, command lines, prose), and what stands at a place for names becomes a
pseudonym of the kind that the place says.
"""

from __future__ import annotations

import ipaddress
import json
import re
import shlex
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import quote, unquote
from xml.etree import ElementTree

from virtrace.analysis.qmp import REPLY, SEND
from virtrace.bundle import words
from virtrace.bundle.forms import (
    ABOUT_QEMU,
    CODE,
    COMMON_FILE,
    CUT,
    DEEPEST,
    ELEMENTS,
    FLAGS,
    FRAME,
    IDENTIFIER,
    KEY,
    KEYS,
    LARGE,
    LIBRARY,
    LISTS,
    NAMES,
    NOBODY,
    PLAIN,
    PROSE,
    QOM,
    QOM_PART,
    SHAPES,
    TARGET,
    TIME,
    URI,
    VIRSH,
)
from virtrace.bundle.pseudonyms import KINDS, Pseudonyms
from virtrace.recipe import catalogue
from virtrace.trace.format import Json, Record, is_unavailable, unavailable

ElementTree.register_namespace("qemu", "http://libvirt.org/schemas/domain/qemu/1.0")

# Most texts of a trace are few; ids and pointers are as many as there are events.
_MOST_CACHED = 20_000


class Redactor:
    """Reads everything once to know all originals, then, when told so, again to replace them."""

    def __init__(self, names: Pseudonyms) -> None:
        self.names = names
        self._cache: dict[tuple[str, str, bool], str] = {}
        self._keys: dict[tuple[str, bool], str] = {}
        # Whether keys are names of C and of the recipe; of QMP and others most are known.
        self._of_c = False
        self._sent: dict[object, object] = {}
        self._by_domain: frozenset[str] = frozenset()
        self._backtraces: frozenset[str] = frozenset()
        self._depth = 0

    def complete(self) -> None:
        """All that is to be redacted has been read once."""
        self.names.complete()
        self._cache.clear()
        self._keys.clear()
        self._sent.clear()

    # A trace

    def record(self, record: Record) -> Record:
        """A record of a trace; RecursionError where it is nested too deep."""
        with self._keys_of(c=record["type"] != "host"):
            return self._record(record)

    @contextmanager
    def _keys_of(self, *, c: bool) -> Iterator[None]:
        outer, self._of_c = self._of_c, c
        try:
            yield
        finally:
            self._of_c = outer

    def _record(self, record: Record) -> Record:
        kind = record["type"]
        if kind == "header":
            return self._header(record)
        if kind in ("footer", "switched-off"):
            return {key: self._own(value) for key, value in record.items()}
        if kind == "host":
            return {key: self._host(key, value) for key, value in record.items()}
        values = record["values"]
        told = {key: value for key, value in record.items() if key != "values"}
        told["name"] = self._own(told["name"])
        if kind == "line":
            return {**told, "values": self._line(values)}
        if kind == "lost":
            return {**told, "values": self._own(values)}
        if "json" in values:
            return {**told, "values": self._qmp(str(record["name"]), values)}
        return {**told, "values": {self._key(k): self._value(v, k) for k, v in values.items()}}

    def _header(self, header: Record) -> Record:
        recipe = header["recipe"]
        self._by_domain = frozenset(_captured(recipe, "records("))
        self._backtraces = frozenset(_captured(recipe, "backtrace("))
        target, selection = header["target"], header.get("selection") or {}
        paths: dict[str, Callable[[str], str]] = {"path": self._path, "exe": self._path}
        modules = [
            {key: paths.get(key, self._own)(value) for key, value in module.items()}
            for module in target["modules"]
        ]
        rest = {key: value for key, value in target.items() if key != "modules"}
        found: Record = {
            "type": "header",
            "format": header["format"],
            "version": header["version"],
            "started": self._own(header["started"]),
            "clock": self._own(header["clock"]),
            "tool": self._own(header["tool"]),
            "target": {
                **{key: paths.get(key, self._own)(value) for key, value in rest.items()},
                "modules": modules,
            },
            "host": self._own(header["host"]),
            "recipe": self._recipe(recipe),
            "probes": [self._own(probe) for probe in header["probes"]],
            "redacted": sorted(self.names.keep),
        }
        if isinstance(header.get("limits"), dict):
            found["limits"] = self._own(header["limits"])
        if "part" in header:
            found["part"] = self._own(header["part"])
        if isinstance(selection.get("where"), dict):
            where = self._where(selection["where"])
            limits = {key: self._own(selection.get(key)) for key in ("calls", "seconds")}
            found["selection"] = {"where": where, **limits}
        if isinstance(header.get("command"), str):
            found["command"] = self.text(header["command"], "command")
        return found

    def _recipe(self, recipe: Record) -> Record:
        if _is_shipped(recipe):
            return recipe
        prose = {
            key: self._prose(recipe[key])
            for key in ("name", "about", "try")
            if isinstance(recipe.get(key), str)
        }
        redacted: Record = {**self._own(recipe), **prose}
        if isinstance(recipe.get("where"), dict):
            redacted["where"] = self._where(recipe["where"])
        return redacted

    def _where(self, filters: Record) -> Record:
        return {key: self._value(value, key) for key, value in filters.items()}

    def _host(self, key: str, value: Json) -> Json:
        if key in ("type", "collected", "file_system"):
            return self._own(value) if not is_unavailable(value) else self._value(value, key)
        if key == "xml" and isinstance(value, str):
            return self.xml(value)
        return self._value(value, key)

    def _line(self, values: Record) -> Record:
        """A source line of libvirt, which is no secret, and what it changed."""
        kinds = {"text": "own", "file": "source"}
        return {
            key: self._typed(value, kinds[key])
            if key in kinds and isinstance(value, str)
            else self._value(value, key)
            for key, value in values.items()
        }

    def _qmp(self, probe: str, values: Record) -> Record:
        document = values["json"]
        about_qemu = False
        if isinstance(document, dict):
            key = (str(values.get("mon")), str(document.get("id")))
            if probe == SEND:
                self._sent[key] = document.get("execute")
            elif probe == REPLY:
                command = self._sent.pop(key, None)
                about_qemu = isinstance(command, str) and command in ABOUT_QEMU
                if command == "query-name" and isinstance(document.get("return"), dict):
                    self._value(document["return"].get("name"), "domain")
        with self._keys_of(c=about_qemu):
            redacted = self._own(document) if about_qemu else self._value(document)
        found: Record = {}
        for key_, value in values.items():
            if key_ == "json":
                found[key_] = redacted
            elif isinstance(value, str) and key_ == "text":
                found[key_] = self._same_text(value, document, redacted)
            else:
                found[key_] = self._value(value, key_)
        return found

    def _same_text(self, text: str, document: Json, redacted: Json) -> Json:
        """The text of a document as it was sent, with what became of the document."""
        if not self.names.is_complete:
            return text
        try:
            same = json.loads(text) == document
        except (ValueError, RecursionError):
            same = False
        if not same:
            return self._value(text)
        return _as_before(text, redacted)

    # Values

    def _value(self, value: Json, key: str = "") -> Json:
        if isinstance(value, str):
            return self._cache.get((value, key, self._of_c)) or self.text(value, key)
        if isinstance(value, dict):
            return self._object(value, key)
        if isinstance(value, list):
            kind = LISTS.get(key)
            if key in self._backtraces and all(map(_is_frame, value)):
                return [self._own(each) for each in value]
            if kind is not None:
                return [self._named(each, kind) for each in value]
            return [self._value(each, key) for each in value]
        if type(value) is int and value > LARGE and _kind_of(key) in ("serial", "secret"):
            # A WWN is a number to QEMU.
            return self.names.add(_kind_of(key), str(value))
        return value

    def _object(self, value: Record, key: str) -> Json:
        if is_unavailable(value):
            return unavailable(self._prose(str(value["unavailable"])))
        if ("bytes" in value or "length" in value) and not value.keys() - CUT:
            return self._cut(value, key)
        if key in self._by_domain:
            return {
                self.names.add("domain", domain): self._value(params)
                for domain, params in value.items()
            }
        return {
            self._key(name): each
            if type(each) is int and each < LARGE
            else self._value(each, _last(name))
            for name, each in value.items()
        }

    def _named(self, value: Json, kind: str) -> Json:
        if not isinstance(value, dict):
            return self._value(value, kind)
        return {
            self._key(name): self._value(each, kind if name in ("name", "tag") else name)
            for name, each in value.items()
        }

    def _cut(self, value: Record, key: str) -> Json:
        """The beginning of a text, or bytes: what it is cannot be read, equal stays equal."""
        if isinstance(value.get("text"), str):
            return {**value, "text": self.names.add(_kind_of(key), value["text"])}
        pseudonym = self.names.add(_kind_of(key), str(value.get("bytes")))
        return {"text": pseudonym, "length": value["length"]} if "length" in value else pseudonym

    def _key(self, key: str) -> str:
        found = self._keys.get((key, self._of_c))
        if found is None:
            parts = re.split(r"[^A-Za-z]+|(?<=[a-z])(?=[A-Z])", key)
            known = KEY.fullmatch(key) and (
                self._of_c
                or words.is_name(key)
                or all(words.is_word(part.lower()) or len(part) < 2 for part in parts)
            )
            found = self.names.replace(key) if known else self.names.add("text", key)
            self._keys[key, self._of_c] = found
        return found

    def _own(self, value: Json) -> Json:
        """What virtrace, or a tool of itself, says; only what is known to be private goes."""
        if isinstance(value, str):
            return self._prose(value, own=True)
        if isinstance(value, dict):
            return {self._key(key): self._own(each) for key, each in value.items()}
        if isinstance(value, list):
            return [self._own(each) for each in value]
        return value

    # Texts

    def text(self, text: str, key: str = "") -> str:
        """A text whose key, attribute or place is called so."""
        found = self._cache.get((text, key, self._of_c))
        if found is None:
            found = self._text(text, key)
            if len(self._cache) >= _MOST_CACHED:
                self._cache.clear()
            self._cache[text, key, self._of_c] = found
        return found

    def _text(self, text: str, key: str) -> str:
        if not text.strip():
            return text
        self._depth += 1
        try:
            if self._depth > DEEPEST:
                return self.names.add("text", text)
            return self._typed(text, KEYS.get(key.lower().replace("_", "-"), key))
        finally:
            self._depth -= 1

    def _typed(self, text: str, kind: str) -> str:
        """kind: one of KINDS, of the further ones of KEYS, or whatever a key is called."""
        handlers: dict[str, Callable[[str], str]] = {
            "message": self._prose,
            "command": self.command,
            "argument": self._argument,
            "own": lambda each: self._prose(each, own=True),
            "code": lambda each: (
                each if self._of_c and IDENTIFIER.fullmatch(each) else self._untyped(each)
            ),
            "path": self._place,
            "source": lambda each: (
                each if self._of_c and CODE.fullmatch(each) else self._place(each)
            ),
            "place": lambda each: self._place(each) if "/" in each else self._name(each),
            "disk": lambda each: (
                each if TARGET.fullmatch(each) else self._shaped(each) or self._place(each)
            ),
            "name": self._name,
            "id": lambda each: each if each.isdecimal() else self._name(each),
        }
        if text in FLAGS and kind not in NAMES:
            return text
        if kind in handlers:
            return handlers[kind](text)
        if kind not in KINDS:
            return self._untyped(text)
        if kind == "volume" and "/" in text and not text.startswith("/"):
            pool, _, volume = text.partition("/")
            return f"{self.names.add('pool', pool)}/{self.names.add('volume', volume)}"
        shaped = None if kind in ("secret", "text") else self._shaped(text)
        if shaped is not None:
            return shaped
        if text in NOBODY.get(kind, ()):
            return text
        return self.names.add(kind, text)

    def _untyped(self, text: str) -> str:
        structured = self._structured(text) or self._shaped(text)
        if structured is not None:
            return structured
        if words.is_name(text) or len(text) == 1:
            return text
        plain = self._plain(text)
        if plain is not None:
            return plain
        prefixed = re.fullmatch(r"(unix|file|pipe|tcp|udp|telnet):(/.*)", text)
        if prefixed:
            return f"{prefixed[1]}:{self._place(prefixed[2])}"
        known = self.names.known(text)
        if known is not None:
            return known
        return self._prose(text) if " " in text else self.names.add("text", text)

    def _name(self, text: str) -> str:
        """Of a name what it is the name of is not known here, but may be elsewhere."""
        known = self.names.known(text)
        return known if known is not None else self._untyped(text)

    def _structured(self, text: str) -> str | None:
        if text.startswith(("json:", "{", "[")):
            return self._json(text)
        if re.fullmatch(URI, text):
            return self._uri(text)
        if text.startswith("/"):
            return self._place(text)
        return None

    def _shaped(self, text: str) -> str | None:
        for kind, pattern in SHAPES:
            if pattern.fullmatch(text):
                return self._address(text) if kind == "ip" else self.names.add(kind, text)
        return self._place(text) if text.startswith("/") else None

    def _plain(self, text: str) -> str | None:
        """What stays because of its form."""
        if PLAIN.fullmatch(text) or _is_code(text):
            self.names.harmless(text)
            return text
        return None

    def _address(self, text: str) -> str:
        try:
            address = ipaddress.ip_address(text)
        except ValueError:
            # Four numbers with dots are a version too.
            return text
        if address.is_loopback or address.is_unspecified:
            return text
        return self.names.add("ip", text)

    def _json(self, text: str) -> str | None:
        prefix = "json:" if text.startswith("json:") else ""
        try:
            document = json.loads(text[len(prefix) :])
        except (ValueError, RecursionError):
            return None
        if not isinstance(document, (dict, list)):
            return None
        with self._keys_of(c=False):
            redacted = self._value(document)
        return prefix + _as_before(text[len(prefix) :], redacted)

    def _uri(self, text: str) -> str:
        """Scheme, and what the rest is made of: ``nbd+unix:///export?socket=/path``."""
        scheme, _, rest = text.partition("://")
        if not all(words.is_word(part) for part in re.split("[+.-]", scheme)):
            scheme = self.names.add("text", scheme)
        rest, question, query = rest.partition("?")
        authority, slash, path = rest.partition("/")
        account, at, place = authority.rpartition("@")
        if account:
            user, colon, password = account.partition(":")
            account = self._inside(user, "user")
            account += colon + (self._inside(password, "secret") if password else "")
        host, port = place, ""
        found = re.fullmatch(r"(\[.*\]|[^:]*)(:[0-9]*)?", place)
        if found:
            host, port = found[1], found[2] or ""
        if host.startswith("["):
            host = f"[{self._inside(host[1:-1], 'ip')}]"
        elif host:
            host = self._inside(host, "host")
        path = unquote(path)
        folders = "" if path in ("system", "session") else self._path(slash + path)[1:]
        folders = folders or path
        pairs = []
        for pair in query.split("&") if query else []:
            name, equals, value = pair.partition("=")
            with self._keys_of(c=False):
                pairs.append(self._key(name) + equals + self._inside(value, name))
        return f"{scheme}://{account}{at}{host}{port}{slash}{quote(folders)}{question}" + "&".join(
            pairs
        )

    def _inside(self, text: str, key: str) -> str:
        """URL-encoded."""
        return quote(self.text(unquote(text), key), safe="/:@") if text else text

    def _place(self, text: str) -> str:
        """Where something is stored: a path, a URI, or QEMU's JSON of one."""
        found = self._json(text) if text.startswith(("json:", "{")) else None
        if found is not None:
            return found
        if re.fullmatch(URI, text):
            return self._uri(text)
        if QOM.fullmatch(text):
            return self._qom(text)
        if re.fullmatch(r"/[^:]*(?::/[^:]*)+", text):
            return ":".join(map(self._path, text.split(":")))
        if PLAIN.fullmatch(text):
            self.names.harmless(text)
            return text
        prefix, colon, rest = text.partition(":")
        if colon and not text.startswith("/") and words.is_name(prefix) and rest:
            # QEMU's own form: nbd:host:port, rbd:pool/image, fat:rw:/folder.
            return f"{prefix}:{self._place(rest)}"
        return self._path(text)

    def _qom(self, text: str) -> str:
        parts = [
            part
            if not part
            or words.is_name(part)
            or words.is_word(part)
            or self._plain(part)
            or _is_numbered(part)
            else self.names.add("text", part)
            for part in text.split("/")
        ]
        return "/".join(parts)

    def _path(self, text: str) -> str:
        if COMMON_FILE.fullmatch(text):
            folder, _, name = text.rpartition("/")
            if words.is_common_folder(folder) or text.startswith(
                ("/usr/", "/lib", "/dev/", "/proc/", "/bin/")
            ):
                return text
            return f"{self._path(folder)}/{name}" if folder else text
        above, found = "", list[str]()
        for part in text.split("/"):
            above = f"{above}/{part}" if found else part
            common = (
                not part
                or part in (".", "..")
                or words.is_common_folder(above)
                or LIBRARY.fullmatch(part)
            )
            found.append(part if common else self.names.add("path", part))
        pseudonym = "/".join(found)
        self.names.watch(text, pseudonym)
        return pseudonym

    # Command lines

    def command(self, text: str) -> str:
        """What a shell reads; also several commands behind each other."""
        commands = re.split(r"(\s*(?:;|&&|\|\||\|)\s*|\n)", text)
        try:
            split = [shlex.split(each) for each in commands[::2]]
        except ValueError:
            # A quote goes over a separator, or is never closed.
            try:
                split, commands = [shlex.split(text)], [text]
            except ValueError:
                return self.names.add("text", text)
        found: list[str] = []
        for number, argv in enumerate(split):
            before = ""
            shown: list[str] = []
            for word in argv:
                shown.append(self._argument(word, before, first=not shown))
                before = word
            found.append(shlex.join(shown))
            if 2 * number + 1 < len(commands):
                found.append(commands[2 * number + 1])
        return "".join(found)

    def _argument(self, word: str, before: str = "", *, first: bool = False) -> str:
        if not word:
            return word
        if first or word in VIRSH:
            folder, slash, name = word.rpartition("/")
            if name in VIRSH or COMMON_FILE.fullmatch(f"/usr/bin/{name}"):
                return self._path(folder) + slash + name if slash else name
        if word.startswith("-"):
            option, equals, value = word.partition("=")
            parts = re.split("-+", option.strip("-"))
            known = all(words.is_word(part.lower()) or len(part) < 2 for part in parts)
            option = option if known else "--" + self.names.add("text", option.lstrip("-"))
            if not equals:
                return option
            return option + equals + self._argument(value, option)
        if before == "-c" and " " in word:
            return self.command(word)
        if before == "-uuid":
            return self.text(word, "uuid")
        structured = self._structured(word)
        if structured is not None:
            return structured
        if "=" in word:
            return self._pairs(word)
        return word if TARGET.fullmatch(word) else self._name(word)

    def _pairs(self, text: str) -> str:
        """``guest=vm1,debug-threads=on``, ``virtio-blk-pci,id=d0``; ``,,`` is a comma."""
        with self._keys_of(c=False):
            return self._paired(text)

    def _paired(self, text: str) -> str:
        found = []
        for pair in re.split(r"(?<!,),(?!,)", text):
            key, equals, value = pair.partition("=")
            if not equals:
                found.append(self.text(pair, "id"))
                continue
            value = self.text(value.replace(",,", ","), _last(key)).replace(",", ",,")
            found.append(self._key(key) + equals + value)
        return ",".join(found)

    # Prose

    def _prose(self, text: str, *, own: bool = False) -> str:
        """What is quoted is a name, whatever it says; of the other words those stay that are known.

        own: of virtrace itself, which quotes nothing private that is not known elsewhere.
        """
        found, at = [], 0
        while at < len(text):
            known = self.names.find(text, at)
            if known is not None:
                at = known[0]
                found.append(known[1])
                continue
            match = PROSE.match(text, at)
            if match is None:
                found.append(text[at])
                at += 1
                continue
            at = match.end()
            found.append(self._token(match, own))
        return "".join(found)

    def _token(self, match: re.Match[str], own: bool) -> str:
        token, kind = match[0], match.lastgroup
        if kind == "quoted":
            if own and token[0] == "`":
                return token[0] + self._prose(token[1:-1], own=True) + token[-1]
            return token[0] + self._quoted(token[1:-1], match) + token[-1]
        if kind == "time":
            return token
        if kind == "uri":
            return self._uri(token)
        if kind == "path":
            path = token.rstrip(".:")
            return self._place(path) + token[len(path) :]
        if kind in ("uuid", "mac", "email"):
            return self.names.add(kind, token)
        if kind in ("ipv4", "ipv6"):
            return self._address(token)
        return self.names.replace(token) if own else self._word(token)

    def _quoted(self, text: str, match: re.Match[str]) -> str:
        before = match.string[: match.start()].rstrip().rpartition(" ")[2].lower()
        certain = before == "name" or KEYS.get(before) in KINDS
        return self.text(text, "name" if certain else "id")

    def _word(self, token: str) -> str:
        word = token.rstrip(".:/-%")
        if not word:
            return token
        rest = token[len(word) :]
        parts = re.split("[-_./:@+]", word.lower())
        if words.is_name(word) or all(words.is_word(part) or len(part) < 2 for part in parts):
            return token
        if self._plain(word) is not None:
            return token
        name, equals, value = word.partition(":")
        if equals and words.is_word(name.lower()) and value:
            return f"{name}:{self._word(value)}{rest}"
        return self.names.add("text", word) + rest

    # Files

    def xml(self, text: str) -> str:
        """The XML of a domain, or of a part of one; other text becomes a pseudonym."""
        try:
            top = ElementTree.fromstring(text)
        except (ElementTree.ParseError, ValueError):
            return self.names.add("text", text)
        with self._keys_of(c=False):
            self._element(top, "")
        return ElementTree.tostring(top, encoding="unicode")

    def _element(self, element: ElementTree.Element, above: str) -> None:
        space, _, tag = element.tag.rpartition("}")
        if not words.is_name(tag) or not (space + "/").startswith(("/", "{http://libvirt.org/")):
            element.tag = self._key(tag)
        if tag in ("metadata", "description", "title"):
            self._hide(element)
            return
        for full, value in list(element.attrib.items()):
            name = full.rpartition("}")[2]
            if name != full:
                del element.attrib[full]
            key = f"{tag}/{name}"
            element.set(name, self._typed_or(value, ELEMENTS.get(key), name))
        if element.text and element.text.strip():
            kind = ELEMENTS.get(f"{above}/{tag}") or ELEMENTS.get(tag)
            element.text = self._typed_or(element.text, kind, tag)
        for child in element:
            if child.tail and child.tail.strip():
                child.tail = self.names.add("text", child.tail)
            self._element(child, tag)

    def _typed_or(self, text: str, kind: str | None, key: str) -> str:
        return self._typed(text, kind) if kind else self.text(text, key)

    def _hide(self, element: ElementTree.Element) -> None:
        """All that is in it becomes one text, and each part of it must not be found."""
        inner = [text for text in element.itertext() if text.strip()]
        values = [value for each in element.iter() for value in each.attrib.values()]
        for text in (*inner, *values):
            self.names.add("text", text.strip())
        whole = ElementTree.tostring(element, encoding="unicode").strip() if len(element) else ""
        shown = whole or "".join(inner).strip()
        tail = element.tail
        element.clear()
        element.tail = tail
        if shown:
            element.text = self.names.add("text", shown)

    def log(self, text: str) -> str:
        """Of QEMU: what libvirt wrote when it started it, the command line, QEMU's own words."""
        return "\n".join(map(self._log_line, text.split("\n")))

    def _log_line(self, line: str) -> str:
        if re.match(rf"{TIME}: starting up libvirt version: ", line):
            before, _, host = line.partition("hostname: ")
            return f"{self._prose(before, own=True)}hostname: {self.text(host.strip(), 'host')}"
        argument = re.fullmatch(r"('?(?:-|[A-Z_]+=|/usr/\S+).*?)( ?\\?)", line)
        if argument and not line.startswith("-machine: "):
            return self.command(argument[1]) + argument[2]
        return self._prose(line)

    def backtrace(self, text: str) -> str:
        """GDB's: of its words and the daemon's functions nothing is private, what it quotes is."""
        quoted = re.sub(r'"((?:[^"\\]|\\.)+)"', lambda found: f'"{self._name(found[1])}"', text)
        return self._prose(quoted, own=True)

    def versions(self, record: Record) -> Record:
        """Of programs and of the system."""
        return {key: self._own(value) for key, value in record.items()}

    def setting(self, line: str) -> str:
        """``key = value`` of a daemon's configuration, or ``# file``."""
        if not line.strip():
            return line
        if line.startswith("# "):
            return "# " + self.text(line[2:], "path")
        key, equals, value = line.partition("=")
        name = key.strip()
        value = re.sub(
            r"\"([^\"]*)\"|'([^']*)'",
            lambda found: '"' + self.text(found[1] or found[2] or "", _last(name)) + '"',
            value,
        )
        return f"{self._key(name)} {equals}{value if equals else ''}".rstrip()


def _kind_of(key: str) -> str:
    kind = KEYS.get(key, "text")
    return kind if kind in KINDS else "text"


def _last(key: str) -> str:
    """``block.0.path`` is a path, ``file.filename`` a file's name."""
    return key.rpartition(".")[2]


def _is_code(text: str) -> bool:
    """A name of libvirt's or QEMU's source, of words that they are known to use."""
    parts = re.split(r"[^A-Za-z]+|(?<=[a-z])(?=[A-Z])", text)
    return bool(CODE.fullmatch(text)) and all(
        words.is_word(part.lower()) or len(part) < 2 for part in parts
    )


def _is_numbered(part: str) -> bool:
    return bool(QOM_PART.fullmatch(part)) and all(
        words.is_word(each.lower()) or not each
        for each in re.split("[-_.]", part.partition("[")[0])
    )


def _as_before(text: str, document: Any) -> str:
    """A document as JSON, with the spaces that it had before."""
    body = text.strip()
    start = text.index(body)
    separators = (", ", ": ") if re.match(r'[{\[]\s*"[^"]*"(?:: |, )', body) else (",", ":")
    shown = json.dumps(document, ensure_ascii=False, separators=separators)
    return text[:start] + shown + text[start + len(body) :]


def _captured(recipe: Record, beginning: str) -> Iterable[str]:
    """The names of values whose capture begins so: ``records(`` has objects by domain."""
    rest: list[tuple[str, Json]] = [("", recipe)]
    while rest:
        key, value = rest.pop()
        if isinstance(value, dict):
            rest += list(value.items())
        elif isinstance(value, list):
            rest += [(key, each) for each in value]
        elif isinstance(value, str) and value.startswith(beginning):
            yield key


def _is_frame(value: Json) -> bool:
    return is_unavailable(value) or (isinstance(value, str) and bool(FRAME.fullmatch(value)))


def _is_shipped(recipe: Record) -> bool:
    name = recipe.get("name")
    if not isinstance(name, str) or name not in catalogue.shipped():
        return False
    return dict(catalogue.find(name).raw) == recipe
