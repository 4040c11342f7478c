"""Who waits for whom, as a picture: at the left what keeps the others waiting."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from virtrace.report.drawing import MARGIN, Box, Drawing, wrapped
from virtrace.snapshot.format import AT_REST, STATES, WELL, Snapshot, ThreadRecord
from virtrace.wording import count

# What a node is, and what tells it from the others of its kind.
_Key = tuple[str, object, object]

_TEXT_WIDTH, _TEXT_LINES = 30, 3
# Between boxes, in pixels.
_BESIDE, _BELOW = 44, 12
# Of what waits for one thing, and in a chain.
_MOST_BESIDE, _DEEPEST = 12, 12
# Of the whole picture.
_MOST_BOXES = 150


@dataclass
class _Node:
    """A thread, or what threads wait for. behind: what waits for it."""

    box: Box
    is_thread: bool = False
    behind: list[_Node] = field(default_factory=list)
    # Of threads, this one and all behind it.
    threads: int = 0
    # Of all that is drawn at its right, in pixels.
    height: float = 0


def graph_svg(snapshot: Snapshot) -> str | None:
    """Draw the graph as a part of a page; None if no thread waits for anything."""
    roots = _Graph(snapshot).roots()
    if not roots:
        return None
    drawing = Drawing("who waits for whom, the cause at the left")
    columns: list[list[_Node]] = []
    shown = _shown(roots)
    for node, depth in _preorder(shown):
        if depth == len(columns):
            columns.append([])
        columns[depth].append(node)
    for node in (each for column in reversed(columns) for each in column):
        behind = sum(each.height for each in node.behind) + _BELOW * (len(node.behind) - 1)
        node.height = max(node.box.height, behind)
    _place(columns, shown)
    for node, _ in _preorder(shown):
        drawing.box(node.box)
        for each in node.behind:
            drawing.across(node.box.right, each.box.left)
    return drawing.svg(alone=False)


def _preorder(roots: Sequence[_Node]) -> Iterator[tuple[_Node, int]]:
    # Not recursive: a file can have a chain of thousands.
    rest = [(root, 0) for root in reversed(roots)]
    while rest:
        node, depth = rest.pop()
        yield node, depth
        rest += [(each, depth + 1) for each in reversed(node.behind)]


def _shown(roots: Sequence[_Node]) -> list[_Node]:
    """Fold what would make the picture too large; return the roots that are drawn."""
    for node in reversed([node for node, _ in _preorder(roots)]):
        node.threads = node.is_thread + sum(each.threads for each in node.behind)
    top = _Node(Box([]), behind=list(roots))
    left = _MOST_BOXES
    rest = [(top, 0)]
    while rest:
        node, depth = rest.pop(0)
        fits = 0 if depth > _DEEPEST else min(_MOST_BESIDE, left)
        if len(node.behind) > fits:
            folded = sum(each.threads for each in node.behind[fits:])
            more = Box([f"and {count(folded, 'more thread')}"], kind="unknown")
            node.behind[fits:] = [_Node(more)]
        left = max(left - len(node.behind), 0)
        rest += [(each, depth + 1) for each in node.behind]
    return top.behind


def _place(columns: Sequence[Sequence[_Node]], roots: Sequence[_Node]) -> None:
    x = float(MARGIN)
    for column in columns:
        for node in column:
            node.box.x = x
        x += max(node.box.width for node in column) + _BESIDE
    tops = {}
    y = float(MARGIN)
    for root in roots:
        tops[id(root)] = y
        y += root.height + 2 * _BELOW
    for node, _ in _preorder(roots):
        # At the top, so that the cause is seen first, however much waits for it.
        node.box.y = at = tops[id(node)]
        for each in node.behind:
            tops[id(each)] = at
            at += each.height + _BELOW


class _Graph:
    """Each node waits for one other at most: a thread for what it waits in, that for its holder."""

    def __init__(self, snapshot: Snapshot) -> None:
        self._snapshot = snapshot
        self._by_own_tid = {thread["own_tid"]: thread for thread in snapshot["threads"]}
        self._domains = {domain["name"]: domain for domain in snapshot["domains"]}
        self._qemus = {qemu["pid"]: qemu for qemu in snapshot["qemus"]}
        first = snapshot["verdicts"][0]
        # The tid of the thread that the answer is about.
        self._guilty = None if first["verdict"] in WELL else first["thread"]
        self._nodes: dict[_Key, _Node] = {}
        self._waits_for: dict[_Key, _Key] = {}

    def roots(self) -> list[_Node]:
        """Return what waits for nothing that is known, the cause of the answer first."""
        busy = (each for each in self._snapshot["threads"] if each["wait"]["kind"] not in AT_REST)
        rest = deque(busy)
        while rest:
            thread = rest.popleft()
            if self._key(thread) not in self._nodes:
                owner = self._add(thread)
                rest.extend([] if owner is None else [owner])
        self._break_cycles()
        for key, holder in self._waits_for.items():
            self._nodes[holder].behind.append(self._nodes[key])
        found = [key for key in self._nodes if key not in self._waits_for]
        found.sort(key=lambda key: not self._is_guilty(key))
        return [self._nodes[key] for key in found]

    def _is_guilty(self, key: _Key) -> bool:
        """Whether this is the cause of the answer, or a deadlock."""
        return self._nodes[key].box.kind.endswith("bad")

    @staticmethod
    def _key(thread: ThreadRecord) -> _Key:
        return "thread", thread["own_tid"], None

    def _add(self, thread: ThreadRecord) -> ThreadRecord | None:
        """Add a thread and what it waits for; return the thread that holds that."""
        key, wait = self._key(thread), thread["wait"]
        is_root = thread["tid"] == self._guilty
        self._nodes[key] = _thread(thread, kind="bad" if is_root else "")
        kind = wait["kind"]
        if kind in ("mutex", "rwlock"):
            owner = self._by_own_tid.get(wait["owner"] or 0)
            which = wait["owner"] if owner is not None else key
            lock = self._below(key, "lock", (wait["what"], which), [wait["what"] or "a lock"])
            return None if owner is None else self._held(lock, owner)
        if kind == "job":
            return self._job(key, thread)
        bad = "bad" if is_root else ""
        if kind in ("qemu", "agent"):
            command = wait["command"]
            asked = "a command" if command is None else command["name"] or "a command"
            what = "monitor" if kind == "qemu" else "guest agent"
            lines = [f"{what} of {wait['domain'] or 'a domain'}", asked]
            monitor = self._below(key, "monitor", (wait["domain"], asked), lines, "qmp")
            self._qemu(monitor, wait["domain"], bad)
        elif kind == "event":
            self._qemu(key, wait["domain"], bad)
        elif kind in ("child", "peer"):
            for child in wait["children"][:1]:
                lines = [f"process {child['pid']} ({child['state']})", child["command"]]
                self._below(key, "process", child["pid"], lines, f"host {bad}")
        elif kind == "system call":
            where = wait["mount"]
            mounted = [] if where is None else [f"{where['type']} at {where['point']}"]
            called = [wait["file"]] if wait["file"] else []
            name = wait["what"] or f"the kernel, in {wait['system_call']}"
            self._below(key, "call", thread["own_tid"], [name, *called, *mounted], f"host {bad}")
        return None

    def _below(
        self, key: _Key, what: str, which: object, lines: Sequence[str], kind: str = ""
    ) -> _Key:
        """Add what a node waits for, if it is not there; return its key."""
        holder: _Key = (what, which, None)
        if holder not in self._nodes:
            first, *notes = lines
            shown = [line for note in notes for line in wrapped(note, _TEXT_WIDTH, _TEXT_LINES)]
            box = Box(wrapped(first, _TEXT_WIDTH, _TEXT_LINES), shown, kind.strip())
            self._nodes[holder] = _Node(box)
        elif kind.endswith("bad"):
            self._nodes[holder].box.kind = kind.strip()
        self._waits_for[key] = holder
        return holder

    def _held(self, holder: _Key, owner: ThreadRecord) -> ThreadRecord:
        self._waits_for[holder] = self._key(owner)
        return owner

    def _job(self, key: _Key, thread: ThreadRecord) -> ThreadRecord | None:
        name = thread["wait"]["domain"]
        domain = self._domains.get(name or "")
        jobs = domain["jobs"] if domain is not None else []
        held = jobs if isinstance(jobs, list) else []
        others = [job for job in held if job["owner"] != thread["own_tid"]]
        # One that no thread holds keeps others waiting only where no thread does.
        others.sort(key=lambda job: job["owner"] not in self._by_own_tid)
        if not others:
            self._below(key, "job", name, [f"job of {name or 'a domain'}"])
            return None
        job = others[0]
        owner = self._by_own_tid.get(job["owner"] or 0)
        lines = [f"{job['kind']} {job['work']} of {name}"]
        lines += [] if owner is not None else ["held by no thread"]
        bad = "bad" if owner is None and thread["tid"] == self._guilty else ""
        taken = self._below(key, "job", (name, job["kind"], job["owner"]), lines, bad)
        return None if owner is None else self._held(taken, owner)

    def _qemu(self, key: _Key, name: str | None, bad: str) -> None:
        domain = self._domains.get(name or "")
        pid = None if domain is None else domain["qemu"]
        qemu = self._qemus.get(pid or 0)
        lines = [f"QEMU of {name or 'a domain'}"]
        if pid is not None:
            lines.append(f"process {pid}")
        if qemu is not None:
            states = [thread["state"] for thread in qemu["threads"][:1]]
            lines += [STATES.get(state, f"state {state}") for state in states]
            lines += [] if qemu["tracer"] is None else [f"held by debugger {qemu['tracer']}"]
        self._below(key, "qemu", name, lines, f"host {bad}")

    def _break_cycles(self) -> None:
        """Let one thread of each deadlock be its root, and show it again where it waits."""
        clear: set[_Key] = set()
        for start in list(self._nodes):
            path: dict[_Key, None] = {}
            at: _Key | None = start
            while at is not None and at not in clear and at not in path:
                path[at] = None
                at = self._waits_for.get(at)
            clear.update(path)
            if at not in path:
                continue
            keys = list(path)
            # Each cycle has a thread: locks and jobs wait for threads alone.
            first = min(key for key in keys[keys.index(at) :] if key[0] == "thread")
            holder = self._waits_for.pop(first)
            self._nodes[first].box.kind = "api bad"
            again = Box([f"thread {first[1]} again:", "a deadlock"], kind="unknown bad")
            self._nodes["again", first[1], None] = _Node(again)
            self._waits_for["again", first[1], None] = holder


def _thread(thread: ThreadRecord, kind: str) -> _Node:
    request, client = thread["request"], thread["client"]
    notes = [f"thread {thread['tid']}"]
    if request is not None and request["name"] is not None:
        notes = [f"{request['subject']} {request['name']}, {notes[0]}"]
    if client is not None and client["pid"] is not None:
        notes.append(f"for process {client['pid']}")
    lines = wrapped(thread["api"] or thread["role"], _TEXT_WIDTH, _TEXT_LINES)
    shown = [line for note in notes for line in wrapped(note, _TEXT_WIDTH, _TEXT_LINES)]
    return _Node(Box(lines, shown, f"api {kind}".strip(), thread["doing"]), is_thread=True)
