"""Redact the records of a trace: the kind of a record says what its fields are."""

from __future__ import annotations

import re
from collections.abc import Iterable

from virtrace.bundle.redact.captures import NAME, Captures
from virtrace.bundle.redact.command_line import redact_command
from virtrace.bundle.redact.context import Context
from virtrace.bundle.redact.json import formatted_like
from virtrace.bundle.redact.prose import redact_prose
from virtrace.bundle.redact.qemu_log import redact_log
from virtrace.bundle.redact.records import OF_C, RecordRedactor, Redact
from virtrace.bundle.redact.texts import Texts
from virtrace.bundle.redact.xml import redact_domain
from virtrace.trace.format import Header, Json, Record, is_unavailable
from virtrace.trace.json_text import parsed, texts_of
from virtrace.trace.roles import QMP_REPLY

_BUILD_ID = re.compile("[0-9a-f]{8,64}")
# Names that the kernel and virtrace give.
_MEMORY = re.compile(r"[A-Z]\w+|free hugepages of \d+ KiB|guest")
_OF_OTHERS = Context()


class TraceRedactor(RecordRedactor):
    """Redacts the records of one trace."""

    def __init__(self, texts: Texts, header: Header, keep: Iterable[str] = ()) -> None:
        """header: of the trace. keep: the kinds that are not replaced, for the header."""
        super().__init__(texts)
        self._captures = Captures.of(header["recipe"])
        self._keep = sorted(keep)
        # The captured value of a point that is JSON text, by the point's name.
        self._json_texts = texts_of(header["recipe"])
        self._replies = frozenset(
            probe["name"] for probe in header["probes"] if probe["role"] == QMP_REPLY
        )

    def record(self, record: Record) -> Record:
        kind = record["type"]
        if kind == "header":
            return self._header(record)
        if kind == "host":
            return {key: self._host(key, value) for key, value in record.items()}
        if kind == "failure":
            return self._failure(record)
        if kind == "footer":
            return self._fields(record, {"hits": self._hits})
        if kind == "switched-off":
            return self._fields(record, {"name": self._name, "why": self._prose})
        return self._event(record)

    # The header

    def _header(self, header: Record) -> Record:
        recipe = header["recipe"]
        redacted: Record = {
            "type": "header",
            "format": header["format"],
            "version": header["version"],
            "started": self._plain(header["started"]),
            "clock": self._fields(header["clock"], {}),
            "tool": self.tool(header),
            "target": self._target(header["target"]),
            "host": self.machine(header["host"]),
            "recipe": recipe if self._captures.is_shipped else self._recipe(recipe),
            "probes": [self._probe(probe) for probe in header["probes"]],
            "redacted": self._keep,
        }
        if isinstance(header.get("qemu"), dict):
            redacted["qemu"] = self._target(header["qemu"])
        for key in ("limits", "part"):
            if isinstance(header.get(key), dict):
                redacted[key] = self._fields(header[key], {})
        selection = header.get("selection") or {}
        if isinstance(selection.get("where"), dict):
            limits = {key: self._plain(selection.get(key)) for key in ("calls", "seconds")}
            redacted["selection"] = {"where": self._filters(selection["where"]), **limits}
        if isinstance(header.get("command"), str):
            redacted["command"] = self.texts.text(header["command"], "command", OF_C)
        return redacted

    def _target(self, target: Record) -> Record:
        module: dict[str, Redact] = {
            "path": self._path,
            "build_id": lambda value: value if _BUILD_ID.fullmatch(value) else self._plain(value),
            "base": self._pointer,
        }
        return self._fields(
            target,
            {
                "exe": self._path,
                "program": self._named_version,
                "modules": lambda modules: [self._fields(each, module) for each in modules],
                "probes": lambda names: [self._name(each) for each in names],
            },
        )

    def tool(self, header: Record) -> Record:
        """What recorded the trace; the version of the engine can be that of the host's kernel."""
        engine = header["tool"]["engine"]
        is_kernel = engine["version"] == header["host"]["kernel"]
        version: Redact = self._system if is_kernel else self._plain
        known: dict[str, Redact] = {"name": self._system, "version": version}
        return self._fields(header["tool"], {"engine": lambda _: self._fields(engine, known)})

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

    def _hits(self, hits: Json) -> Json:
        return {self._name(name): number for name, number in hits.items()}

    def _recipe(self, recipe: Json, key: str = "") -> Json:
        """A user's own recipe: its name, its texts, and the names in it."""
        if isinstance(recipe, dict):
            return {
                self._name(name): self._filters(value)
                if name == "where" and isinstance(value, dict)
                else self._recipe(value, name)
                for name, value in recipe.items()
            }
        if isinstance(recipe, list):
            return [self._recipe(item, key) for item in recipe]
        if not isinstance(recipe, str):
            return self._value(recipe, key)
        if key == "try":
            return redact_command(self.texts, recipe, OF_C)
        if key == "about":
            return self._prose(recipe)
        if key == "name" and not NAME.fullmatch(recipe):
            return self.texts.unknown(recipe, OF_C)
        # `job->owner`, `typed(params, nparams)`, `const char *name`.
        return re.sub(
            r"\w[\w.@+-]*|[^\x00-\x7f]+",
            lambda match: self._name(match[0]),
            recipe,
        )

    def _filters(self, filters: Record) -> Record:
        return self._captures.redact_filters(self.texts, filters, OF_C)

    # Events

    def _event(self, record: Record) -> Record:
        values, kind = record["values"], record["type"]
        redacted = {**record, "name": self._name(record["name"])}
        if kind == "line":
            redacted["values"] = self._line(values)
        elif kind == "lost":
            redacted["values"] = self._fields(values, {})
        else:
            redacted["values"] = self._point(record["name"], values)
        return redacted

    def _point(self, name: str, values: Record) -> Record:
        """The values of a point or of a function; those that are JSON text are read as JSON."""
        json_text = self._json_texts.get(name)
        document = None if json_text is None else parsed(values.get(json_text))
        if document is not None:
            document = self._document(name, document)
        redacted: Record = {}
        for key, value in values.items():
            if document is not None and key == json_text:
                redacted[key] = formatted_like(value, document)
            else:
                redacted[self._captured_name(key)] = self._captured(key, value)
        return redacted

    def _document(self, name: str, document: Json) -> Json:
        answer = document.get("return") if isinstance(document, dict) else None
        if name in self._replies and isinstance(answer, dict) and answer.keys() == {"name"}:
            # The answer of query-name alone looks so: even an everyday word is the guest.
            as_domain = {**document, "return": {"domain": answer["name"]}}
            redacted: Record = self.texts.value(as_domain, "", _OF_OTHERS)
            redacted["return"] = {"name": redacted["return"]["domain"]}
            return redacted
        return self.texts.value(document, "", _OF_OTHERS)

    def _captured_name(self, key: str) -> str:
        return self._captures.redact_key(self.texts, key, OF_C)

    def _captured(self, key: str, value: Json) -> Json:
        return self._captures.redact_value(self.texts, key, value, OF_C)

    def _line(self, values: Record) -> Record:
        """A source line of libvirt, which is public, and the values that it changed."""
        redacted: Record = {}
        for key, value in values.items():
            if key == "text" and isinstance(value, str):
                redacted[key] = redact_prose(self.texts, value, OF_C, code=True)
            elif key == "changed" and isinstance(value, dict):
                redacted[key] = {
                    self._captured_name(name): self._value(new) for name, new in value.items()
                }
            else:
                redacted[key] = self._value(value, key)
        return redacted

    # The host

    def _host(self, key: str, value: Json) -> Json:
        if key == "type":
            return value
        if key == "collected":
            return self._plain(value, _OF_OTHERS)
        if key == "file_system" and isinstance(value, str):
            return self._system(value, _OF_OTHERS)
        if key == "xml" and isinstance(value, str):
            return redact_domain(self.texts, value, _OF_OTHERS)
        return self.texts.value(value, key, _OF_OTHERS)

    def _failure(self, record: Record) -> Record:
        """What the host said as a call failed; a key that no version has is left out."""

        def fields(known: dict[str, Redact]) -> Redact:
            return lambda value: (
                self._plain(value, _OF_OTHERS)
                if is_unavailable(value)
                else {key: known[key](value[key]) for key in known if key in value}
            )

        def each(redact: Redact) -> Redact:
            return lambda value: (
                self._plain(value, _OF_OTHERS)
                if is_unavailable(value)
                else [redact(item) for item in value]
            )

        kind = self._of_kind
        holders = each(
            fields(
                {
                    "pid": _as_it_is,
                    "command": kind("name"),
                    "domain": kind("domain"),
                    "locks": each(self._plain),
                }
            )
        )
        numbers = ("uid", "gid", "groups", "overrides", "is_given")
        acl: dict[str, Redact] = dict.fromkeys(("kind", "id", "rights"), _as_it_is)
        step: dict[str, Redact] = {
            **dict.fromkeys(("type", "uid", "gid", "mode"), _as_it_is),
            **{"path": self._path, "target": self._path, "problem": self._prose},
            **{"acl": each(fields(acl)), "label": kind("label")},
        }
        path: dict[str, Redact] = {
            **{"path": self._path, "why": self._prose, "steps": each(fields(step))},
            **{"file_system": lambda value: value and self._system(value), "holders": holders},
        }
        redacted: Record = fields(
            {
                **dict.fromkeys(("type", "call"), _as_it_is),
                "collected": lambda value: self._plain(value, _OF_OTHERS),
                "name": self._name,
                "domain": kind("domain"),
                "user": fields(
                    {
                        **dict.fromkeys(numbers, _as_it_is),
                        "name": kind("user"),
                        "known_by": self._prose,
                    }
                ),
                "paths": each(fields(path)),
                "addresses": each(fields({"address": self._address, "holders": holders})),
                "log": lambda text: (
                    redact_log(self.texts, text, _OF_OTHERS)
                    if isinstance(text, str)
                    else self._plain(text, _OF_OTHERS)
                ),
                "kernel": each(lambda line: redact_prose(self.texts, line, _OF_OTHERS)),
                "memory": lambda table: {
                    name: number for name, number in table.items() if _MEMORY.fullmatch(name)
                },
            }
        )(record)
        return redacted

    def _of_kind(self, kind: str) -> Redact:
        return lambda value: self.texts.value(value, kind, _OF_OTHERS)

    def _address(self, address: str) -> str:
        """A port is a number, and a socket a file."""
        return address if address.isdecimal() else self._path(address)


def _as_it_is(value: Json) -> Json:
    """Numbers, and words that the format has."""
    return value
