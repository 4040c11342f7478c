"""Replace what tells of a host, its guests and its users, in the texts of a bundle.

Nothing is replaced by looking for what may be private: a text stays only where its place, its
form or a list says that it is harmless. Each text is read by its structure (JSON, also inside
of strings, XML, URIs, command lines, prose), and what stands at a place for names becomes a
pseudonym of the kind that the place says.
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import quote, unquote
from xml.etree import ElementTree

from virtrace.bundle import words
from virtrace.bundle.forms import (
    ARGUMENTS,
    CODE,
    COMMON_NAME,
    COUNTED,
    CUT,
    DEEPEST,
    DEVICE,
    ELEMENTS,
    ESCAPED,
    FLAGS,
    IDENTIFIER,
    KEY,
    LARGE,
    LIBRARY,
    LISTS,
    LOOPBACK,
    NAMES,
    NOBODY,
    PASSWORD,
    PLACEHOLDERS,
    PLAIN,
    PROGRAMS,
    PROSE,
    QOM,
    QOM_PART,
    SHAPED,
    TARGET,
    TIME,
    UNIT,
    URI,
    kind_of_key,
    shapes,
)
from virtrace.bundle.pseudonyms import KINDS, Pseudonyms
from virtrace.trace.format import Json, Record, is_unavailable, unavailable

ElementTree.register_namespace("qemu", "http://libvirt.org/schemas/domain/qemu/1.0")

# Most texts of a trace are few; ids and pointers are as many as there are events.
_MOST_CACHED = 20_000
_THREAD = re.compile(r"\(LWP [0-9]+\) \Z")
_LONGEST_PLAIN = 128
_MOST_COLONS = 16
# So many are no number of a device or of a version.
_MANY_DIGITS = re.compile("(?:[0-9][^0-9]*){5}")
# Between a word and the number or the name that it is about.
_LINKING = frozenset({"of", "is", "was", "to", "at", "the", "with"})


class Redactor:
    """Reads everything once to know all originals, then, when told so, again to replace them."""

    def __init__(self, names: Pseudonyms) -> None:
        self.names = names
        self._cache: dict[tuple[str, str, bool], str] = {}
        self._keys: dict[tuple[str, bool], str] = {}
        # Whether keys are names of C and of the recipe; of QMP and others most are known.
        self._of_c = False
        self._depth = 0

    def complete(self) -> None:
        """All that is to be redacted has been read once."""
        self.names.complete()
        self._cache.clear()
        self._keys.clear()

    @contextmanager
    def keys_of(self, *, c: bool) -> Iterator[None]:
        outer, self._of_c = self._of_c, c
        try:
            yield
        finally:
            self._of_c = outer

    # Values

    def value(self, value: Json, key: str = "") -> Json:
        if isinstance(value, str):
            return self._cache.get((value, key, self._of_c)) or self.text(value, key)
        if isinstance(value, dict):
            return self._object(value, key)
        if isinstance(value, list):
            kind = LISTS.get(key)
            if kind is not None:
                return [self._named(each, kind) for each in value]
            return [self.value(each, key) for each in value]
        if type(value) is int and value >= LARGE:
            self.names.number(value)
            if kind_of_key(key) in ("serial", "secret"):
                # A WWN is a number to QEMU.
                return self.names.add(_kind_of(key), str(value))
        if type(value) is int and PASSWORD.search(key.lower()):
            return self.names.add("secret", str(value))
        return value

    def _object(self, value: Record, key: str) -> Json:
        if is_unavailable(value):
            return unavailable(self.prose(str(value["unavailable"])))
        if ("bytes" in value or "length" in value) and not value.keys() - CUT:
            return self._cut(value, key)
        return {self.key(name): self.value(each, _last(name)) for name, each in value.items()}

    def _named(self, value: Json, kind: str) -> Json:
        if not isinstance(value, dict):
            return self.value(value, kind)
        return {
            self.key(name): self.value(each, kind if name in ("name", "tag") else name)
            for name, each in value.items()
        }

    def _cut(self, value: Record, key: str) -> Json:
        """The beginning of a text, or bytes: what it is cannot be read, equal stays equal."""
        if isinstance(value.get("text"), str):
            return {**value, "text": self.names.add(_kind_of(key), value["text"])}
        pseudonym = self.names.add(_kind_of(key), str(value.get("bytes")))
        return {"text": pseudonym, "length": value["length"]} if "length" in value else pseudonym

    def key(self, key: str) -> str:
        found = self._keys.get((key, self._of_c))
        if found is None:
            known = KEY.fullmatch(key) and (
                self._of_c
                or words.is_name(key)
                or (_of_words(_camel_parts(key)) and not _MANY_DIGITS.search(key))
            )
            found = self.names.replace(key) if known else self.names.add("text", key)
            self._keys[key, self._of_c] = found
        return found

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
            return self._typed(text, kind_of_key(key) or key)
        finally:
            self._depth -= 1

    def _typed(self, text: str, kind: str) -> str:
        """kind: one of KINDS, of the further ones of KEYS, or whatever a key is called."""
        handlers: dict[str, Callable[[str], str]] = {
            "message": lambda each: (
                (self._json(each) if each[0] in "{[" else None) or self.prose(each)
            ),
            "command": self.command,
            "argument": lambda each: self._arguments([each], strict=False)[0],
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
            "id": self._name,
        }
        if text in FLAGS and kind not in NAMES:
            return text
        if kind in handlers:
            return handlers[kind](text)
        if kind not in KINDS:
            return self._untyped(text, kind)
        if kind == "volume" and "/" in text and not text.startswith("/"):
            pool, _, volume = text.partition("/")
            return f"{self.names.add('pool', pool)}/{self.names.add('volume', volume)}"
        shaped = self._shaped(text) if kind not in NAMES or kind in SHAPED else None
        if shaped is not None:
            return shaped
        if text in NOBODY.get(kind, ()) or (kind in ("host", "ip") and LOOPBACK.fullmatch(text)):
            return text
        return self.names.add(kind, text)

    def _untyped(self, text: str, key: str = "") -> str:
        structured = self._structured(text) or self._shaped(text)
        if structured is not None:
            return structured
        if words.is_name(text) or len(text) == 1:
            return text
        if self._is_plain(text) or (text.isdecimal() and _counts(key)):
            return text
        prefixed = re.fullmatch(r"(unix|file|pipe|tcp|udp|telnet):(/.*)", text)
        if prefixed:
            return f"{prefixed[1]}:{self._place(prefixed[2])}"
        known = self.names.known(text)
        if known is not None:
            return known
        if " " in text or next(shapes(text), None):
            return self.prose(text)
        return self.names.add("text", text)

    def _name(self, text: str) -> str:
        """Of a name what it is the name of is not known here, but may be elsewhere."""
        known = self.names.known(text)
        return known if known is not None else self._untyped(text)

    def unknown(self, text: str) -> str:
        """Whatever somebody gave a name of his own: even an everyday word may be a name."""
        known = self.names.known(text)
        if known is not None:
            return known
        structured = self._structured(text) or self._shaped(text)
        if structured is not None:
            return structured
        return text if self._is_plain(text) else self.names.add("text", text)

    def _structured(self, text: str) -> str | None:
        if text.startswith(("json:", "{", "[")):
            return self._json(text)
        if text.startswith("<"):
            return self._xml(text)
        if re.fullmatch(URI, text):
            return self._uri(text)
        if text.startswith("/"):
            return self._place(text)
        return None

    def _shaped(self, text: str) -> str | None:
        for kind, found in shapes(text):
            if found[0] == text:
                return self.names.add(kind, text)
        return self._place(text) if text.startswith("/") else None

    def _is_plain(self, text: str) -> bool:
        """Whether it stays because of its form."""
        if len(text) > _LONGEST_PLAIN or not (PLAIN.fullmatch(text) or is_code(text)):
            return False
        if next(shapes(text), None):
            return False
        self.names.harmless(text)
        return True

    def _json(self, text: str) -> str | None:
        prefix = "json:" if text.startswith("json:") else ""
        try:
            document = json.loads(text[len(prefix) :])
        except (ValueError, RecursionError):
            return None
        if not isinstance(document, (dict, list)):
            return None
        with self.keys_of(c=False):
            redacted = self.value(document)
        return prefix + as_before(text[len(prefix) :], redacted)

    def _uri(self, text: str) -> str:
        """Scheme, and what the rest is made of: ``nbd+unix:///export?socket=/path``."""
        scheme, _, rest = text.partition("://")
        if not all(words.is_word(part) for part in re.split("[+.-]", scheme)):
            scheme = self.names.add("text", scheme)
        rest, question, query = rest.partition("?")
        authority, slash, path = rest.partition("/")
        account, at, places = authority.rpartition("@")
        if account:
            user, colon, password = account.partition(":")
            account = self._inside(user, "user")
            account += colon + (self._inside(password, "secret") if password else "")
        # Several hosts stand behind each other, as those of a cluster.
        host = ",".join(map(self._host, places.split(",")))
        path = _from_url(path)
        folders = "" if path in ("system", "session") else self.path(slash + path)[1:]
        folders = folders or path
        pairs = []
        for pair in query.split("&") if query else []:
            name, equals, value = pair.partition("=")
            with self.keys_of(c=False):
                pairs.append(self.key(name) + equals + self._inside(value, name))
        return f"{scheme}://{account}{at}{host}{slash}{_for_url(folders)}{question}" + "&".join(
            pairs
        )

    def _host(self, text: str) -> str:
        """With its port, if it has one."""
        found = re.fullmatch(r"(\[.*\]|[^:]*)(:[0-9]{0,5})?", text)
        host, port = (found[1], found[2] or "") if found else (text, "")
        if host.startswith("["):
            return f"[{self._inside(host[1:-1], 'host')}]{port}"
        return (self._inside(host, "host") if host else "") + port

    def _inside(self, text: str, key: str) -> str:
        """URL-encoded."""
        return _for_url(self.text(_from_url(text), key), "/:@") if text else text

    def _place(self, text: str) -> str:
        """Where something is stored: a path, a URI, or QEMU's JSON of one."""
        if text.count(":") > DEEPEST:
            return self.names.add("path", text)
        found = self._json(text) if text.startswith(("json:", "{")) else None
        if found is not None:
            return found
        if re.fullmatch(URI, text):
            return self._uri(text)
        if QOM.fullmatch(text):
            return self._qom(text)
        if re.fullmatch(r"/[^:]*(?::/[^:]*)+", text):
            return ":".join(map(self.path, text.split(":")))
        if not is_code(text) and self._is_plain(text):
            return text
        prefix, colon, rest = text.partition(":")
        if colon and not text.startswith("/") and words.is_name(prefix) and rest:
            # QEMU's own form: nbd:host:port, rbd:pool/image, fat:rw:/folder.
            return f"{prefix}:{self._place(rest)}"
        return self.path(text)

    def _qom(self, text: str) -> str:
        parts = [
            part
            if not part
            or words.is_name(part)
            or words.is_word(part)
            or self._is_plain(part)
            or _is_numbered(part)
            else self.names.add("text", part)
            for part in text.split("/")
        ]
        return "/".join(parts)

    def path(self, text: str) -> str:
        """Folders that many hosts have stay, and of files the names that packages give."""
        if DEVICE.fullmatch(text):
            return text
        above, found = "", list[str]()
        parts = text.split("/")
        for number, part in enumerate(parts):
            above = f"{above}/{part}" if found else part
            last = number == len(parts) - 1 and number > 0
            common = (
                not part
                or part in (".", "..")
                or words.is_common_folder(above)
                or (last and is_common_file(part))
            )
            found.append(part if common else self._part(part))
        pseudonym = "/".join(found)
        self.names.watch(text, pseudonym)
        return pseudonym

    def _part(self, part: str) -> str:
        for kind, found in shapes(part):
            if found[0] == part:
                # Released with paths alone an address would be, too.
                self.names.add(kind, part)
        return self.names.add("path", part)

    # Command lines

    def command(self, text: str) -> str:
        """What a shell or QEMU's monitor reads; also several commands behind each other."""
        commands = re.split(r"(;|&&|\|\||\||\n)", text)
        try:
            split = [shlex.split(each) if each.strip() else [] for each in commands[::2]]
        except ValueError:
            # A quote goes over a separator, or is never closed.
            try:
                split, commands = [shlex.split(text)], [text]
            except ValueError:
                return self.names.add("text", text)
        found: list[str] = []
        for number, argv in enumerate(split):
            given = commands[2 * number]
            program = argv[0].rpartition("/")[2] if argv else ""
            # QEMU's own options have values of its own; of any other program a word is a name.
            strict = not program.startswith(("-", "qemu-system-", "kvm")) and "=" not in program
            shown = shlex.join(self._arguments(argv, strict=strict))
            found += [" " * given[:1].isspace(), shown, " " * (bool(argv) and given[-1:].isspace())]
            found += commands[2 * number + 1 : 2 * number + 2]
        return "".join(found)

    def _arguments(self, argv: list[str], *, strict: bool) -> list[str]:
        """strict: no word but of a command is taken for an everyday one."""
        found: list[str] = []
        before, program, follow = "", "", list[str]()
        verb = True
        for word in argv:
            if word.rpartition("/")[2] in PROGRAMS:
                program, verb = word.rpartition("/")[2], True
            kind = follow.pop(0) if follow and not word.startswith("-") else ""
            option = before.lstrip("-") if before.startswith("-") else ""
            if kind == "" and option and kind_of_key(option) in KINDS:
                kind = option
            if kind and kind != "untyped":
                found.append(self.text(word, kind))
                follow = follow or ([kind] if kind == "secret" else [])
            elif before in ("-c", "--connect") and program == "virsh":
                found.append(self._place(word))
            else:
                found.append(self._argument(word, before, verb, strict and not kind))
                if verb and word in ARGUMENTS:
                    follow = list(ARGUMENTS[word])
                # Options of virsh's own stand before its command.
                verb = bool(program) and verb and word.startswith("-")
                verb = verb or word.rpartition("/")[2] in PROGRAMS
            before = word
        return found

    def _argument(self, word: str, before: str, verb: bool, strict: bool) -> str:
        if not word:
            return word
        if word.count("=") > DEEPEST:
            return self.names.add("text", word)
        if verb or word in PROGRAMS:
            folder, slash, name = word.rpartition("/")
            if name in PROGRAMS or COMMON_NAME.fullmatch(name):
                return self.path(folder) + slash + name if slash else name
        if word.startswith("-"):
            option, equals, value = word.partition("=")
            parts = re.split("-+", option.strip("-"))
            option = (
                option if _of_words(parts) else "--" + self.names.add("text", option.lstrip("-"))
            )
            if not equals:
                return option
            kind = option.lstrip("-")
            typed = kind_of_key(kind) in KINDS
            return (
                option
                + equals
                + (
                    self.text(value, kind)
                    if typed
                    else self._argument(value, option, False, strict)
                )
            )
        if " " in word and (before == "-c" or strict):
            return self.command(word)
        structured = self._structured(word)
        if structured is not None:
            return structured
        if "=" in word:
            return self._pairs(word)
        if TARGET.fullmatch(word) or word in PLACEHOLDERS or (word in FLAGS and not strict):
            return word
        if strict and not (verb and words.is_name(word)):
            return self.unknown(word)
        return self._name(word)

    def _pairs(self, text: str) -> str:
        """``guest=vm1,debug-threads=on``, ``virtio-blk-pci,id=d0``; ``,,`` is a comma."""
        with self.keys_of(c=False):
            found = []
            for pair in re.split(r"(?<!,),(?!,)", text):
                key, equals, value = pair.partition("=")
                if not equals:
                    found.append(self.text(pair, "id"))
                    continue
                value = self.text(value.replace(",,", ","), _last(key)).replace(",", ",,")
                found.append(self.key(key) + equals + value)
            return ",".join(found)

    # Prose

    def prose(self, text: str, *, code: bool = False) -> str:
        """What is quoted is a name, whatever it says; of the other words those stay that are known.

        code: of a program's source and stack, of which nothing but texts and paths is private.
        """
        text = ESCAPED.sub(_unescaped, text) if "\\" in text else text
        shaped = {found.start(): (found.end(), kind) for kind, found in shapes(text)}
        found, at, before = [], 0, ""
        while at < len(text):
            known = self.names.find(text, at)
            if known is not None:
                at, before = known[0], ""
                found.append(known[1])
                continue
            if at in shaped:
                end, kind = shaped[at]
                found.append(self.names.add(kind, text[at:end]))
                at, before = end, ""
                continue
            match = PROSE.match(text, at)
            if match is None:
                escaped = ESCAPED.match(text, at)
                found.append(self.names.add("text", escaped[0]) if escaped else text[at])
                at = escaped.end() if escaped else at + 1
                continue
            at = match.end()
            found.append(self._token(match, before, code))
            if match.lastgroup != "word":
                before = ""
            elif match[0] not in _LINKING:
                before = match[0]
            told = None if code else self._told(text, at, before)
            if told is not None:
                found.append(told[1])
                at, before = told[0], ""
        return "".join(found)

    def _told(self, text: str, at: int, key: str) -> tuple[int, str] | None:
        """Of ``key=value`` and ``password: value`` the end, and what it becomes."""
        name = key.rstrip(":")
        if kind_of_key(name) not in KINDS:
            return None
        between = r"\s*=\s*"
        if PASSWORD.search(name.lower()):
            between = r"\s+" if key.endswith(":") else r"\s*[=:]\s*"
        found = re.compile(rf"({between})(\"[^\"\n]+\"|'[^'\n]+'|[^\s,;'\"]+)").match(text, at)
        if found is None:
            return None
        value = found[2]
        quote_ = value[0] if value[0] in "'\"" and len(value) > 1 else ""
        inner = value[1:-1] if quote_ else value
        return found.end(), found[1] + quote_ + self.text(inner, name) + quote_

    def _token(self, match: re.Match[str], before: str, code: bool) -> str:
        token, kind = match[0], match.lastgroup
        if kind == "quoted":
            inner = token[1:-1]
            if code and inner:
                # Each thread of the daemon has a name; those of guests have the guest's.
                is_thread = _THREAD.search(match.string, max(0, match.start() - 24), match.start())
                hidden = inner if is_thread and words.is_name(inner) else self.unknown(inner)
            else:
                hidden = self._quoted(inner, before)
            return token[0] + hidden + token[-1]
        if kind == "time":
            return token
        if kind == "uri":
            return self._uri(token)
        if kind == "path":
            path = token.rstrip(".:")
            return self._place(path) + token[len(path) :]
        return self.names.replace(token) if code else self._word(token, match, before)

    def _quoted(self, text: str, before: str) -> str:
        key = before.strip("(:,").lower()
        kind = kind_of_key(key)
        if kind in KINDS:
            return self.text(text, key)
        if key in ("name", "named", "called"):
            return self._structured(text) or self.names.add("text", text)
        return self.text(text, "id")

    def _word(
        self,
        token: str,
        match: re.Match[str] | None = None,
        before: str = "",
        *,
        shaped: bool = True,
    ) -> str:
        """shaped: it can still hold what identifies by its form."""
        scheme, colon, place = token.partition(":")
        if place.startswith("/") and words.is_word(scheme.lower()):
            return scheme + colon + self._place(place)
        pieces, at = list[str](), 0
        for kind, found in shapes(token) if shaped else ():
            pieces.append(self._word(token[at : found.start()], shaped=False))
            pieces.append(self.names.add(kind, found[0]))
            at = found.end()
        if pieces:
            return "".join(pieces) + self._word(token[at:], shaped=False)
        word = token.rstrip(".:/-%")
        if not word:
            return token
        rest = token[len(word) :]
        parts = re.split("[-_./:@+]", word.lower())
        if words.is_name(word) or _of_words(parts) or self._is_plain(word):
            return token
        if word.isdecimal() and match is not None:
            counts = COUNTED.search(before.strip("(:,").lower())
            if counts or UNIT.match(match.string, match.end()):
                return token
        name, equals, value = word.partition(":")
        if equals and words.is_word(name.lower()) and value and value.count(":") < _MOST_COLONS:
            is_secret = PASSWORD.search(name.lower())
            return f"{name}:{self.text(value, name) if is_secret else self._word(value)}{rest}"
        known = self.names.known(word)
        return (known if known is not None else self.names.add("text", word)) + rest

    # Files

    def xml(self, text: str) -> str:
        """The XML of a domain, or of a part of one; other text becomes a pseudonym."""
        found = self._xml(text)
        return self.names.add("text", text) if found is None else found

    def _xml(self, text: str) -> str | None:
        try:
            # No document of libvirt has types of its own, which can make it endless.
            top = None if "<!DOCTYPE" in text else ElementTree.fromstring(text)
        except (ElementTree.ParseError, ValueError):
            return None
        if top is None:
            return None
        with self.keys_of(c=False):
            self._element(top, "")
        return ElementTree.tostring(top, encoding="unicode")

    def _element(self, element: ElementTree.Element, above: str) -> None:
        space, _, tag = element.tag.rpartition("}")
        if not words.is_name(tag) or not (space + "/").startswith(("/", "{http://libvirt.org/")):
            element.tag = self.key(tag)
        if tag in ("metadata", "description", "title"):
            self._hide(element)
            return
        for full, value in list(element.attrib.items()):
            name = full.rpartition("}")[2]
            del element.attrib[full]
            key = f"{tag}/{name}"
            element.set(self.key(name), self._typed_or(value, ELEMENTS.get(key), name))
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
            return f"{self.prose(before)}hostname: {self.text(host.strip(), 'host')}"
        argument = re.fullmatch(r"('?(?:-|[A-Z_]+=|/usr/\S+).*?)( ?\\?)", line)
        if argument and not line.startswith("-machine: "):
            return self.command(argument[1]) + argument[2]
        return self.prose(line)

    def backtrace(self, text: str) -> str:
        """GDB's: of its words and the daemon's functions nothing is private, what it quotes is."""
        return self.prose(text, code=True)

    def settings(self, text: str) -> Iterator[str]:
        """What a configuration file of a daemon sets, as libvirt reads it: an entry a line."""
        entry: list[str] = []
        depth = 0
        for token in (*_SETTING.findall(text), "\n"):
            depth += (token == "[") - (token == "]")
            if token == "\n" and depth <= 0:
                if entry:
                    yield self._setting(entry)
                entry, depth = [], 0
            elif not token.isspace() and token[0] != "#":
                entry.append(token)

    def _setting(self, entry: list[str]) -> str:
        if entry[1:2] != ["="]:
            return self.names.add("text", " ".join(entry))
        key, _, *value = entry
        with self.keys_of(c=False):
            shown = "".join(self._in_setting(token, key) for token in value)
            return f"{self.key(key)} = {shown}"

    def _in_setting(self, token: str, key: str) -> str:
        if token in ("[", "]", ","):
            return {",": ", "}.get(token, token)
        is_number = re.fullmatch("[-+]?[0-9]{1,18}", token) and kind_of_key(key) not in KINDS
        if is_number and (len(token) < 7 or _counts(key)):
            return str(self.value(int(token), key))
        marks = 3 if token.startswith('"""') else 1 if token[0] in "\"'" else 0
        return f'"{self.text(token[marks : len(token) - marks], key)}"'


# A comment, a text, or a mark; a text of three quotes goes over lines.
_SETTING = re.compile(
    r"""\#[^\n]*|\"{3}(?s:.*?)(?:\"{3}|\Z)|"[^"\n]*"|'[^'\n]*'|\n|[\[\]=,]|[^\S\n]+"""
    r"""|[^\s\[\]=,"'\#]+|["']"""
)


def _kind_of(key: str) -> str:
    kind = kind_of_key(key)
    return kind if kind in KINDS else "text"


def _last(key: str) -> str:
    """``block.0.path`` is a path, ``file.filename`` a file's name."""
    return key.rpartition(".")[2]


def _counts(key: str) -> bool:
    return bool(COUNTED.search(re.sub(r"(?<=[a-z])(?=[A-Z])", "-", key).lower()))


def _camel_parts(text: str) -> list[str]:
    return [part.lower() for part in re.split(r"[^A-Za-z]+|(?<=[a-z])(?=[A-Z])", text)]


def _of_words(parts: list[str]) -> bool:
    return all(words.is_word(part.lower()) or len(part) < 2 for part in parts)


def is_code(text: str) -> bool:
    """A name of libvirt's or QEMU's source, of words that they are known to use."""
    return bool(CODE.fullmatch(text)) and _of_words(_camel_parts(text))


def is_common_file(name: str) -> bool:
    if COMMON_NAME.fullmatch(name):
        return True
    return bool(LIBRARY.fullmatch(name)) and _of_words(_camel_parts(name))


def _is_numbered(part: str) -> bool:
    return bool(QOM_PART.fullmatch(part)) and _of_words(re.split("[-_.]", part.partition("[")[0]))


def _unescaped(found: re.Match[str]) -> str:
    """A name that a program of the C locale has shown byte by byte."""
    raw = bytes(
        int(each[2:], 16) if each.startswith("\\x") else int(each[1:], 8)
        for each in re.findall(r"\\x..|\\...", found[0])
    )
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return found[0]


def _from_url(text: str) -> str:
    return unquote(text, errors="surrogateescape")


def _for_url(text: str, safe: str = "/") -> str:
    """JSON can hold halves of characters, and a URL bytes that are no text."""
    try:
        return quote(text, safe, errors="surrogateescape")
    except UnicodeEncodeError:
        return quote(text, safe, errors="surrogatepass")


def as_before(text: str, document: Any) -> str:
    """A document as JSON, with the spaces that it had before."""
    body = text.strip()
    start = text.index(body)
    separators = (", ", ": ") if re.match(r'[{\[]\s*"[^"]*"(?:: |, )', body) else (",", ":")
    shown = json.dumps(document, ensure_ascii=False, separators=separators)
    return text[:start] + shown + text[start + len(body) :]
