"""Redact the records of a trace: what each field of a record is, its kind of record says."""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Callable, Iterator

from virtrace.bundle import words
from virtrace.bundle.forms import FRAME, kind_of_key
from virtrace.bundle.pseudonyms import KINDS
from virtrace.bundle.redact import Redactor, as_before, is_code, is_common_file
from virtrace.recipe import catalogue
from virtrace.recipe.roles import QMP_REPLY
from virtrace.targets.libvirt import public_api
from virtrace.trace.format import Json, Record, is_unavailable
from virtrace.trace.json_text import parsed, texts_of

# Names in a recipe, in its probes, and in what is captured by them.
_NAME = re.compile(r"\w[\w.@+-]*")
_BUILD_ID = re.compile("[0-9a-f]{8,64}")
_POINTER = re.compile("0x[0-9a-f]{1,16}")
# What a field called `name` is the name of, by what has it in libvirt's source.
_NAMED = {
    **dict.fromkeys(("dom", "domain", "vm", "def", "domdef", "vmdef"), "domain"),
    **dict.fromkeys(("pool", "pooldef"), "pool"),
    **dict.fromkeys(("vol", "voldef", "volume"), "volume"),
    **dict.fromkeys(("snap", "snapshot", "snapdef", "checkpoint"), "snapshot"),
}


class Records:
    """Of one trace, from its header on: that says what was captured."""

    def __init__(self, redactor: Redactor) -> None:
        self._texts = redactor
        self._is_shipped = True
        self._kinds: dict[str, str] = {}
        self._by_domain: frozenset[str] = frozenset()
        self._backtraces: frozenset[str] = frozenset()
        self._json_texts: dict[str, str] = {}
        self._replies: frozenset[str] = frozenset()

    def record(self, record: Record) -> Record:
        """A record of a trace; RecursionError where it is nested too deep."""
        kind = record["type"]
        with self._texts.keys_of(c=kind != "host"):
            if kind == "header":
                return self._header(record)
            if kind == "host":
                return {key: self._host(key, value) for key, value in record.items()}
            if kind == "footer":
                return self._fields(record, {"hits": self._hits})
            if kind == "switched-off":
                return self._fields(record, {"name": self._name, "why": self._texts.prose})
            return self._event(record)

    def _fields(self, record: Record, known: dict[str, Callable[[Json], Json]]) -> Record:
        """known: what becomes of these, where they are there; null stays."""
        return {
            self._texts.key(key): value
            if key == "type" or value is None
            else known.get(key, self._plain)(value)
            for key, value in record.items()
        }

    def _plain(self, value: Json) -> Json:
        """What virtrace says itself: numbers and its own words."""
        return self._texts.prose(value) if isinstance(value, str) else self._texts.value(value)

    # The header

    def _header(self, header: Record) -> Record:
        recipe = header["recipe"]
        self._is_shipped = _is_shipped(recipe)
        self._json_texts = texts_of(recipe)
        self._replies = frozenset(
            probe["name"] for probe in header["probes"] if probe["role"] == QMP_REPLY
        )
        captured = list(_captured(recipe))
        kinds: dict[str, set[str]] = {}
        for name, path in captured:
            kinds.setdefault(name, set()).add(_kind_of_path(path) or "")
        # What several probes capture under one name, and differently, only the name can tell.
        self._kinds = {
            name: found.pop() if len(found) == 1 else ""
            for name, found in kinds.items()
            if not self._is_shipped or found != {""}
        }
        self._by_domain = frozenset(name for name, path in captured if path.startswith("records("))
        self._backtraces = frozenset(
            name for name, path in captured if path.startswith("backtrace(")
        )
        found: Record = {
            "type": "header",
            "format": header["format"],
            "version": header["version"],
            "started": self._plain(header["started"]),
            "clock": self._fields(header["clock"], {}),
            "tool": self._fields(header["tool"], {"engine": self._named_version}),
            "target": self._target(header["target"]),
            "host": self.host(header["host"]),
            "recipe": recipe if self._is_shipped else self._recipe(recipe),
            "probes": [self._probe(probe) for probe in header["probes"]],
            "redacted": sorted(self._texts.names.keep),
        }
        for key in ("limits", "part"):
            if isinstance(header.get(key), dict):
                found[key] = self._fields(header[key], {})
        selection = header.get("selection") or {}
        if isinstance(selection.get("where"), dict):
            limits = {key: self._plain(selection.get(key)) for key in ("calls", "seconds")}
            found["selection"] = {"where": self._where(selection["where"]), **limits}
        if isinstance(header.get("command"), str):
            found["command"] = self._texts.text(header["command"], "command")
        return found

    def _target(self, target: Record) -> Record:
        module: dict[str, Callable[[Json], Json]] = {
            "path": self._texts.path,
            "build_id": lambda value: value if _BUILD_ID.fullmatch(value) else self._plain(value),
            "base": self._pointer,
        }
        return self._fields(
            target,
            {
                "exe": self._texts.path,
                "program": self._named_version,
                "modules": lambda modules: [self._fields(each, module) for each in modules],
            },
        )

    def _named_version(self, record: Json) -> Json:
        """An engine, or a program: its name is one of virtrace's own words."""
        return self._fields(record, {"name": self._name})

    def host(self, host: Record) -> Record:
        """Also versions of what runs there."""
        with self._texts.keys_of(c=True):
            return self._fields(
                host, {"machine": self._listed, "kernel": self._listed, "system": self._listed}
            )

    def _listed(self, value: Json) -> Json:
        """A system's name or version: a host can have one that tells whose it is."""
        if not isinstance(value, str):
            return self._plain(value)
        return re.sub(
            r"[^\W_][\w.~+]*|[^\x00-\x7f]+",
            lambda found: found[0] if words.is_system(found[0]) else self._texts.unknown(found[0]),
            value,
        )

    def _probe(self, probe: Record) -> Record:
        return self._fields(
            probe,
            {
                "name": self._name,
                "taken": self._name,
                "module": self._name,
                "offset": self._pointer,
                "lacks": lambda names: [self._name(name) for name in names],
            },
        )

    def _pointer(self, value: Json) -> Json:
        return value if _POINTER.fullmatch(str(value)) else self._plain(value)

    def _hits(self, hits: Json) -> Json:
        return {self._name(name): number for name, number in hits.items()}

    def _name(self, name: Json) -> str:
        """Of a probe, a function, a module or a value: a recipe of the user's own can tell much."""
        text = str(name)
        return text if _is_public(text) else self._texts.names.add("text", text)

    def _recipe(self, recipe: Json, key: str = "") -> Json:
        """One of the user's own: what it is called and says, and the names in it."""
        if isinstance(recipe, dict):
            return {
                self._name(name): self._where(value)
                if name == "where" and isinstance(value, dict)
                else self._recipe(value, name)
                for name, value in recipe.items()
            }
        if isinstance(recipe, list):
            return [self._recipe(each, key) for each in recipe]
        if not isinstance(recipe, str):
            return self._texts.value(recipe, key)
        if key == "try":
            return self._texts.command(recipe)
        if key == "about":
            return self._texts.prose(recipe)
        if key == "name" and not _NAME.fullmatch(recipe):
            return self._texts.unknown(recipe)
        # `job->owner`, `typed(params, nparams)`, `const char *name`.
        return re.sub(
            r"\w[\w.@+-]*|[^\x00-\x7f]+",
            lambda found: self._name(found[0]),
            recipe,
        )

    def _where(self, filters: Record) -> Record:
        return {self._name(key): self._captured_value(key, each) for key, each in filters.items()}

    # Events

    def _event(self, record: Record) -> Record:
        values, kind = record["values"], record["type"]
        told = {key: value for key, value in record.items() if key != "values"}
        told["name"] = self._name(told["name"])
        if kind == "line":
            return {**told, "values": self._line(values)}
        if kind == "lost":
            return {**told, "values": self._fields(values, {})}
        text = self._json_texts.get(record["name"])
        document = parsed(values.get(text)) if text is not None else None
        if text is not None and document is not None:
            return {**told, "values": self._qmp(record["name"], values, text, document)}
        return {
            **told,
            "values": {
                self._name_of(key): self._captured_value(key, value)
                for key, value in values.items()
            },
        }

    def _name_of(self, value: str) -> str:
        return self._texts.key(value) if self._is_shipped else self._name(value)

    def _captured_value(self, key: str, value: Json) -> Json:
        if isinstance(value, dict) and key in self._by_domain and not is_unavailable(value):
            return {
                self._texts.names.add("domain", domain): self._texts.value(params)
                for domain, params in value.items()
            }
        if isinstance(value, list) and key in self._backtraces and all(map(_is_frame, value)):
            return [self._frame(each) for each in value]
        if isinstance(value, str):
            if _POINTER.fullmatch(value) and kind_of_key(key) is None:
                return value
            kind = self._kinds.get(key)
            if kind == "" and not self._is_shipped and kind_of_key(key) is None:
                return self._texts.unknown(value)
            return self._texts.text(value, kind or key)
        return self._texts.value(value, self._kinds.get(key) or key)

    def _frame(self, frame: Json) -> Json:
        """Functions of the daemon and its libraries."""
        if isinstance(frame, str):
            return self._texts.prose(frame, code=True)
        return self._texts.value(frame)

    def _line(self, values: Record) -> Record:
        """A source line of libvirt, which is no secret, and what it changed."""
        found: Record = {}
        for key, value in values.items():
            if key == "text" and isinstance(value, str):
                found[key] = self._texts.prose(value, code=True)
            elif key == "changed" and isinstance(value, dict):
                found[key] = {
                    self._name_of(each): self._texts.value(to) for each, to in value.items()
                }
            else:
                found[key] = self._texts.value(value, key)
        return found

    def _qmp(self, probe: str, values: Record, text: str, document: Json) -> Record:
        """The values of a point whose captured `text` is this JSON document."""
        answer = document.get("return") if isinstance(document, dict) else None
        if probe in self._replies and isinstance(answer, dict) and answer.keys() == {"name"}:
            # Of query-name, the only one that answers so: even an everyday word is the guest.
            document = {**document, "return": {"domain": answer["name"]}}
            redacted = self._document(document)
            redacted["return"] = {"name": redacted["return"]["domain"]}
        else:
            redacted = self._document(document)
        found: Record = {}
        for key, value in values.items():
            if key == text:
                # As it was sent, with what became of the document.
                is_last = self._texts.names.is_complete
                found[key] = as_before(value, redacted) if is_last else value
            else:
                found[self._name_of(key)] = self._captured_value(key, value)
        return found

    def _document(self, document: Json) -> Json:
        with self._texts.keys_of(c=False):
            return self._texts.value(document)

    # The host

    def _host(self, key: str, value: Json) -> Json:
        if key in ("type", "collected"):
            return self._plain(value) if key == "collected" else value
        if key == "file_system" and isinstance(value, str):
            return self._listed(value)
        if key == "xml" and isinstance(value, str):
            return self._texts.xml(value)
        return self._texts.value(value, key)


def _captured(recipe: Json) -> Iterator[tuple[str, str]]:
    """Names and paths of all that a recipe captures."""
    rest: list[tuple[str, Json]] = [("", recipe)]
    while rest:
        key, value = rest.pop()
        if isinstance(value, dict):
            rest += list(value.items())
        elif isinstance(value, list):
            rest += [(key, each) for each in value]
        elif isinstance(value, str):
            yield key, value


def _kind_of_path(path: str) -> str | None:
    """``domain->name`` is the name of a guest, whatever the recipe calls it."""
    fields = re.fullmatch(r"\*?\w+(?:(?:->|\.)\w+)+", path)
    if fields is None:
        return None
    *above, last = re.split(r"->|\.", path.lstrip("*"))
    if last == "name":
        # Whose definition `def` is, what it is a part of says.
        kinds = [_NAMED[each] for each in above if each in _NAMED]
        return kinds[0] if kinds else None
    kind = kind_of_key(last)
    return kind if kind in KINDS else None


def _is_frame(value: Json) -> bool:
    return is_unavailable(value) or (isinstance(value, str) and bool(FRAME.fullmatch(value)))


def _is_public(name: str) -> bool:
    """Whether libvirt, QEMU or a recipe of virtrace's has it."""
    return is_common_file(name) or is_code(name) or name in _public() or words.is_name(name)


@functools.cache
def _public() -> frozenset[str]:
    shipped = (json.dumps(dict(catalogue.find(name).raw)) for name in catalogue.shipped())
    return frozenset(public_api.functions()).union(*map(_NAME.findall, shipped))


def _is_shipped(recipe: Record) -> bool:
    name = recipe.get("name")
    if not isinstance(name, str) or name not in catalogue.shipped():
        return False
    return dict(catalogue.find(name).raw) == recipe
