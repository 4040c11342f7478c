"""Redact a snapshot: the place of a text says what it is; sentences quote what stands elsewhere."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable

from virtrace.bundle import words
from virtrace.bundle.redact.captures import redact_name
from virtrace.bundle.redact.context import Context
from virtrace.bundle.redact.prose import redact_prose
from virtrace.bundle.redact.records import OF_C, RecordRedactor, Redact
from virtrace.bundle.redact.shapes import FRAME, PLAIN
from virtrace.bundle.redact.texts import Texts
from virtrace.trace.format import Json, Record

_OTHERS = Context()
# The kind of a name, by what a request is about.
_SUBJECTS = {"domain": "domain", "storage pool": "pool", "network": "text"}
# What libvirt calls a thread of a domain; the kernel cuts names of threads after 15 bytes.
_OF_DOMAIN = re.compile(r"(vm-|init-)(.*)", re.S)
_LONGEST_NAME = 15
# What QEMU calls its threads (qemu_thread_create).
_OF_QEMU = re.compile(
    r"CPU [0-9]+/(?:KVM|TCG)|IO \w{1,12}|(?:qemu-system-|kvm|worker|call_rcu|vnc_worker"
    r"|mon_iothread|SPICE Worker|migration|live_migration|multifdsend_[0-9]+|multifdrecv_[0-9]+"
    r"|qemu-kvm|log|gmain|gdbus|pool-spawner)[\w-]{0,10}"
)
# In front of an API's name: the function of a driver that it calls (snapshot/look.py).
_METHOD = "method of "
# Files that have no name, and files of the kernel about a process.
_NAMELESS = re.compile(r"(?:pipe|socket|anon_inode):\[?\w+\]?")
_OF_PROCESS = r"/proc/[0-9]+(?:/task/[0-9]+)?/stack(?![\w/])"


class SnapshotRedactor(RecordRedactor):
    """Redacts one snapshot."""

    def __init__(self, texts: Texts, keep: Iterable[str] = ()) -> None:
        """keep: the kinds that are not replaced, for the document."""
        super().__init__(texts)
        self._keep = sorted(keep)
        self._domains: list[str] = []
        # What the sentences can quote, and what stands there instead.
        self._quoted: dict[str, str] = {}
        self._pattern: re.Pattern[str] | None = None

    def snapshot(self, document: Record) -> Record:
        self._domains = [domain["name"] for domain in document["domains"]]
        # What can be quoted is known once all but the sentences were read.
        self._document(document)
        quoted = sorted(self._quoted, key=len, reverse=True)
        whole = "|".join([_OF_PROCESS, *map(re.escape, quoted)])
        self._pattern = re.compile(rf"(?<![\w.])(?:{whole})(?!\w|\.[0-9])")
        return {**self._document(document), "redacted": self._keep}

    def _document(self, document: Record) -> Record:
        return self._fields(
            document,
            {
                "format": lambda name: name,
                "tool": lambda tool: self._fields(tool, {}),
                "host": lambda host: self.machine(host),
                "daemon": self._records(
                    {"exe": self._file, "program": self._named_version}, is_list=False
                ),
                "crash": self._records({"address": self._address}, is_list=False),
                "verdicts": self._records(
                    {
                        "says": self._told,
                        "means": self._told,
                        "do": self._records({"command": self._told, "effect": self._told}),
                    }
                ),
                "threads": lambda threads: [self._thread(thread) for thread in threads],
                "domains": self._records(
                    {
                        "name": self._quotable("domain"),
                        "uuid": self._of_kind("uuid"),
                        "jobs": lambda jobs: (
                            self._records({"api": self._owner})(jobs)
                            if isinstance(jobs, list)
                            else self._value(jobs)
                        ),
                    }
                ),
                "monitors": self._records(
                    {"kind": self._name, "domain": self._quotable("domain"), "command": self._qmp}
                ),
                "servers": self._records(
                    {"name": self._own_name, "connections": self._records({}), "pool": self._pool}
                ),
                "qemus": self._records({"threads": self._records(self._of_qemu)}),
                "neighbours": self._records({"name": self._own_name, "socket": self._file}),
                "networks": self._records({"name": self._quotable("text")}),
                "objects": self._by_type,
                "object_bytes": self._by_type,
                "notes": lambda notes: [self._told(note) for note in notes],
            },
        )

    def _records(self, known: dict[str, Redact], *, is_list: bool = True) -> Redact:
        """A list of records, or one record. known: as of _fields."""
        if not is_list:
            return lambda record: self._fields(record, known)
        return lambda records: [self._fields(record, known) for record in records]

    # Values of one kind

    def _quote(self, original: str, redacted: str) -> str:
        """Note what the sentences can quote, as it is and in a command."""
        if original.strip():
            self._quoted[original] = redacted
            self._quoted[shlex.quote(original)] = shlex.quote(redacted)
        return redacted

    def _of_kind(self, kind: str) -> Redact:
        return lambda text: self.texts.names.add(kind, text)

    def _quotable(self, kind: str) -> Redact:
        return lambda text: self._quote(text, self.texts.names.add(kind, text))

    def _keyed(self, key: str) -> Redact:
        """A text that is called so."""
        return lambda text: self._quote(text, self.texts.text(text, key, _OTHERS))

    def _own_name(self, name: Json) -> str:
        return self._quote(name, redact_name(self.texts.names, name))

    def _code(self, name: Json) -> str:
        return self.texts.text(name, "api", OF_C)

    def _owner(self, name: Json) -> str:
        """Who took a job: a function, or a thread."""
        redacted = self._code(name) if name.isidentifier() else self._thread_name(name)
        return self._quote(name, redacted)

    def _by_type(self, numbers: Json) -> Record:
        return {self.texts.key(name, OF_C): number for name, number in numbers.items()}

    def _file(self, path: Json) -> str:
        if _NAMELESS.fullmatch(path):
            return str(path)
        return self._quote(path, self.texts.text(path, "path", _OTHERS))

    def _address(self, address: Json) -> Json:
        """The address of a fault can be anything that was taken for a pointer, such as text."""
        if PLAIN.fullmatch(address):
            return address
        self._quote(address, self.texts.names.add("secret", address))
        return None

    def _told(self, text: Json) -> str:
        """A sentence or a command of virtrace's own."""
        if self._pattern is None:
            return str(text)
        parts, at = [], 0
        for found in self._pattern.finditer(text):
            parts += [self._prose(text[at : found.start()]), self._quoted.get(found[0], found[0])]
            at = found.end()
        return "".join([*parts, self._prose(text[at:])])

    # Threads

    def _thread(self, thread: Record) -> Record:
        wait: dict[str, Redact] = {
            "what": self._told,
            "domain": self._quotable("domain"),
            "command": self._qmp,
            "file": self._file,
            "function": self._code,
            "children": self._records({"command": self._keyed("command")}),
            "mount": self._records(
                {"point": self._file, "type": lambda name: self._system(name, _OTHERS)},
                is_list=False,
            ),
        }
        return self._fields(
            thread,
            {
                "name": self._thread_name,
                "api": self._code,
                "client": self._records(
                    {"user": self._keyed("user"), "command": self._keyed("command")}, is_list=False
                ),
                "request": self._request,
                "doing": self._told,
                "wait": self._records(wait, is_list=False),
                "frames": lambda frames: [self._frame(frame) for frame in frames],
                "frames_end": self._told,
            },
        )

    def _thread_name(self, name: Json) -> str:
        if words.is_name(name):
            return str(name)
        of_domain = _OF_DOMAIN.fullmatch(name)
        if of_domain is None:
            return self.texts.unknown(name, _OTHERS)
        kind, raw = of_domain.groups()
        is_cut = len(name.encode("utf-8", "replace")) >= _LONGEST_NAME
        whole = (one for one in self._domains if one == raw or (is_cut and one.startswith(raw)))
        return kind + self.texts.names.add("domain", next(whole, raw))

    @property
    def _of_qemu(self) -> dict[str, Redact]:
        return {
            "name": lambda name: (
                str(name)
                if _OF_QEMU.fullmatch(name)
                else self._quote(name, self.texts.unknown(name, _OTHERS))
            ),
            "waits_in": self._code,
        }

    def _frame(self, frame: Json) -> str:
        driver, method, function = frame.rpartition(_METHOD)
        if FRAME.fullmatch(function) and not driver:
            return f"{method}{redact_prose(self.texts, function, OF_C, code=True)}"
        return self.texts.unknown(frame, _OTHERS)

    # Requests and commands

    def _request(self, request: Json) -> Record:
        kind = _SUBJECTS.get(request.get("subject"), "text")
        return self._fields(
            request,
            {
                "name": self._quotable(kind),
                "arguments": lambda arguments: {
                    self.texts.key(name, OF_C): self._keyed(name)(text)
                    for name, text in arguments.items()
                },
            },
        )

    def _qmp(self, command: Json) -> Record:
        return self._fields(
            command,
            {
                "text": lambda text: self.texts.text(text, "", _OTHERS),
                "name": lambda name: self._quote(name, self.texts.text(name, "execute", _OTHERS)),
                "id": lambda name: self.texts.unknown(name, _OTHERS),
            },
        )

    def _pool(self, pool: Json) -> Record:
        return self._fields(pool, {"queued": self._records({"request": self._request})})
