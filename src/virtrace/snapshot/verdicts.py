"""What a look means: conditions here, texts in verdicts.yaml.

Each verdict of verdicts.yaml has a function of its name here, which yields the names that its texts
need, once for each case. A new verdict needs an entry there and a function here.
"""

from __future__ import annotations

import shlex
import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from virtrace.documents import document
from virtrace.snapshot.format import AT_REST, NOT_KNOWN, STATES, WELL
from virtrace.snapshot.graph import Root, by_domain, domain_name, roots
from virtrace.snapshot.host import is_local
from virtrace.snapshot.model import Crash, Keepalive, Look, Qemu, SeenThread
from virtrace.wording import count

# A call that has waited for a shorter time does not hang, s.
LONG = 1.0
# What is said of a thread by the kind of its wait alone.
_SAID = {**dict.fromkeys(AT_REST, "waits for work"), NOT_KNOWN: "does what is not known"}
_SOME_DOMAIN = "a domain"
# Below it an address is NULL, or a member of what NULL points to.
_NULL_PAGE = 4096
# What the code of a signal says of the address (sigaction(2)): SEGV_MAPERR, SEGV_ACCERR.
_OF_ADDRESS: Mapping[tuple[int, int | None], str] = {
    (signal.SIGSEGV, 1): ", which is not mapped,",
    (signal.SIGSEGV, 2): ", which does not allow the access,",
}


@dataclass(frozen=True)
class Verdict:
    """An entry of verdicts.yaml, filled in; the head of that file describes the parts.

    thread: the tid of the root, if it is about one. behind: tids of those that wait for it.
    """

    name: str
    says: str
    means: str
    do: tuple[tuple[str, str], ...]
    thread: int | None = None
    behind: tuple[int, ...] = ()


@dataclass(frozen=True)
class _Case:
    """fields: for the texts. root: what it is about; None where it is about the whole daemon."""

    fields: Mapping[str, object]
    root: Root | None = None


@dataclass(frozen=True)
class _Looked:
    """A look, and what keeps its threads waiting. hanging: those roots that did not move."""

    look: Look
    daemon: str
    hanging: Sequence[Root]


_Condition = Callable[[_Looked], Iterator[_Case]]
_CONDITIONS: dict[str, _Condition] = {}


def _verdict(condition: _Condition) -> _Condition:
    _CONDITIONS[condition.__name__.strip("_").replace("_", "-")] = condition
    return condition


def verdicts(look: Look, daemon: str) -> list[Verdict]:
    """All verdicts that hold, the answer first. daemon: the name of the process."""
    looked = _Looked(look, daemon, [root for root in roots(look) if _hangs(look, root)])
    found: list[Verdict] = []
    explained: set[int] = set()
    for name, entry in catalogue().items():
        if name in WELL and found:
            continue
        for case in _CONDITIONS[name](looked):
            root = case.root
            if root is not None:
                # The verdicts are ranked: the first one that explains a thread does.
                if root.thread.tid in explained:
                    continue
                explained.add(root.thread.tid)
            found.append(_filled(name, entry, case, look))
    return found


def _hangs(look: Look, root: Root) -> bool:
    if root.cycle:
        return not any(thread.moved for thread in root.cycle)
    if root.thread.wait.kind == NOT_KNOWN and not root.behind:
        # It may wait for work.
        return False
    if look.crash is not None:
        # A crash comes at any moment: a wait may have begun just then.
        since = _since(look, root.thread)
        return bool(root.behind) if since is None else since >= LONG
    return not root.thread.moved and (root.thread.asleep is None or root.thread.asleep >= LONG)


@cache
def catalogue() -> Mapping[str, Mapping[str, object]]:
    """The entries of verdicts.yaml, by name, in their rank; read once."""
    file = Path(__file__).with_name("verdicts.yaml")
    entries: Mapping[str, Mapping[str, object]] = document(file)
    return entries


def _filled(name: str, entry: Mapping[str, object], case: _Case, look: Look) -> Verdict:
    do = entry.get("do", {})
    assert isinstance(do, dict)
    template = str(entry["says"])
    says = template.format(**case.fields)
    # A name keeps its first letter.
    is_ours = template.startswith("{who}") or case.fields.get("domain") == _SOME_DOMAIN
    is_ours = is_ours and says.startswith(("a ", "the "))
    # Names come from strangers, and the commands are for copying.
    typed = {
        name: shlex.quote(value) if isinstance(value, str) else value
        for name, value in case.fields.items()
    }
    root = case.root
    if root is not None and root.behind:
        says = f"{says[:-1]}; {_behind(look, root.behind)}."
    return Verdict(
        name,
        says[:1].upper() + says[1:] if is_ours else says,
        str(entry["means"]).format(**case.fields),
        tuple((str(key).format(**typed), str(value)) for key, value in do.items()),
        None if root is None else root.thread.tid,
        () if root is None else tuple(thread.tid for thread in root.behind),
    )


def _behind(look: Look, threads: Sequence[SeenThread]) -> str:
    calls = sum(thread.request is not None for thread in threads)
    what = (
        count(calls, "other call") if calls == len(threads) else count(len(threads), "other thread")
    )
    domains = by_domain(look, threads)
    where = f" on {', '.join(sorted(domains))}" if domains else ""
    return f"{what}{where} {'waits' if len(threads) == 1 else 'wait'} for that"


def age(seconds: float | None) -> str:
    """Return how long something has lasted: `` for 4.4 s``; nothing where it is not known."""
    return "" if seconds is None else f" for {duration(seconds)}"


def duration(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def who(look: Look, thread: SeenThread) -> str:
    """Return what a thread does, and for whom: ``virDomainSave of vm1 (thread 22762)``."""
    if thread.api is None:
        return f"the {thread.role} (thread {thread.tid})"
    named = thread.request.name if thread.request is not None else None
    named = named or domain_name(look, thread)
    subject = "" if named is None else f" on {named}"
    return f"{thread.api}{subject} (thread {thread.tid})"


def _since(look: Look, thread: SeenThread) -> float | None:
    if thread.wait.since is not None:
        return max(look.taken - thread.wait.since, 0.0)
    return thread.asleep


@_verdict
def _crashed(looked: _Looked) -> Iterator[_Case]:
    crash = looked.look.crash
    if crash is None:
        return
    thread = looked.look.threads[0]
    named = [frame.text for frame in thread.frames if frame.function is not None]
    frames = named or [frame.text for frame in thread.frames]
    fields = {
        "signal": _signal_name(crash.signal),
        "address": _reason(looked.look.pid, crash),
        "place": frames[0] if frames else "a function without a name",
        "who": who(looked.look, thread),
    }
    yield _Case(fields, Root(thread, ()))


def _reason(pid: int | None, crash: Crash) -> str:
    """Return what the signal says of its reason: the address of a fault, or who sent it."""
    if crash.address is not None:
        null = ", a NULL pointer" if crash.address < _NULL_PAGE else ""
        null += " and an offset" if null and crash.address else ""
        address = f"address {crash.address:#x}{null}"
        if crash.access is not None:
            # A page that was never used can be missing where there is memory.
            page = "did not allow that" if crash.is_protected else "had no memory that allows that"
            return f" {crash.access} {address}, where the process {page},"
        return f" at {address}{_OF_ADDRESS.get((crash.signal, crash.code), null and ',')}"
    # A process that gives up sends the signal to itself.
    if crash.sender is not None and crash.sender != pid:
        return f", sent by process {crash.sender},"
    return ""


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


@_verdict
def _traced(looked: _Looked) -> Iterator[_Case]:
    if looked.look.tracer is not None:
        yield _Case({"tracer": looked.look.tracer})


@_verdict
def _stopped(looked: _Looked) -> Iterator[_Case]:
    threads = looked.look.threads
    if threads and looked.look.tracer is None and all(one.state == "T" for one in threads):
        yield _Case({"pid": looked.look.pid})


@_verdict
def _deadlock(looked: _Looked) -> Iterator[_Case]:
    for root in looked.hanging:
        if root.cycle:
            parts = (
                f"{who(looked.look, thread)} waits for {thread.wait.what or 'a job'}"
                for thread in root.cycle
            )
            yield _Case({"cycle": ", ".join(parts), "daemon": looked.daemon}, root)


@_verdict
def _event_loop(looked: _Looked) -> Iterator[_Case]:
    for root in looked.hanging:
        mains = (root.thread, *root.behind)
        is_known = root.thread.wait.kind != NOT_KNOWN
        if is_known and any(thread.role == "main thread" for thread in mains):
            yield _Case({"doing": doing(looked.look, root.thread)}, root)


def _qemus(looked: _Looked) -> Iterator[tuple[Root, str, Qemu]]:
    """The roots that wait for an answer or an event of QEMU, with the domain and the QEMU."""
    for root in looked.hanging:
        wait = root.thread.wait
        domain = looked.look.domain(wait.domain)
        if (
            wait.kind in ("qemu", "event")
            and domain is not None
            and domain.qemu in looked.look.qemus
        ):
            yield root, domain.name, looked.look.qemus[domain.qemu]


@_verdict
def _qemu_stopped(looked: _Looked) -> Iterator[_Case]:
    for root, domain, qemu in _qemus(looked):
        if qemu.threads[0].state == "T" and qemu.tracer is None:
            yield _Case({"domain": domain, "qemu": qemu.pid}, root)


@_verdict
def _qemu_traced(looked: _Looked) -> Iterator[_Case]:
    for root, domain, qemu in _qemus(looked):
        if qemu.tracer is not None:
            yield _Case({"domain": domain, "qemu": qemu.pid, "tracer": qemu.tracer}, root)


@_verdict
def _qemu_storage(looked: _Looked) -> Iterator[_Case]:
    for root, domain, qemu in _qemus(looked):
        sleeping = next((thread for thread in qemu.threads if thread.state == "D"), None)
        if sleeping is not None:
            fields = {"domain": domain, "qemu": qemu.pid, "tid": sleeping.tid}
            names = {"name": sleeping.name, "channel": sleeping.waits_in or "the kernel"}
            yield _Case({**fields, **names}, root)


@_verdict
def _qemu_silent(looked: _Looked) -> Iterator[_Case]:
    for root, _, qemu in _qemus(looked):
        if root.thread.wait.kind == "qemu":
            yield _Case({**_asked(looked, root), "qemu": qemu.pid}, root)


@_verdict
def _qemu_asked(looked: _Looked) -> Iterator[_Case]:
    for root in looked.hanging:
        if root.thread.wait.kind == "qemu":
            yield _Case(_asked(looked, root), root)


@_verdict
def _qemu_event(looked: _Looked) -> Iterator[_Case]:
    for root, fields in _waiting(looked, "event"):
        domain = looked.look.domain(root.thread.wait.domain)
        if domain is not None:
            yield _Case({**fields, "domain": domain.name, "qemu": domain.qemu or "not known"}, root)


@_verdict
def _agent_silent(looked: _Looked) -> Iterator[_Case]:
    for root in looked.hanging:
        if root.thread.wait.kind == "agent":
            yield _Case(_asked(looked, root), root)


def _asked(looked: _Looked, root: Root) -> dict[str, object]:
    wait = root.thread.wait
    name = None if wait.command is None else wait.command.name
    return {
        "domain": domain_name(looked.look, root.thread) or _SOME_DOMAIN,
        "command": name or "a command",
        "age": age(_since(looked.look, root.thread)),
    }


@_verdict
def _ownerless_job(looked: _Looked) -> Iterator[_Case]:
    for root in looked.hanging:
        if root.job is not None:
            yield _Case(
                {
                    "domain": domain_name(looked.look, root.thread) or _SOME_DOMAIN,
                    "work": root.job.work,
                    "api": root.job.api or "a call that is over",
                    "age": age(looked.look.taken - root.job.since),
                },
                root,
            )


@_verdict
def _held_job(looked: _Looked) -> Iterator[_Case]:
    look = looked.look
    # Of a log: there a domain has no number.
    for domain in (one for one in look.domains if one.id is None):
        waiting = [one for one in look.threads if one.wait.domain == domain.address]
        for job in domain.jobs or ():
            holder = look.thread(job.owner)
            if holder is None and waiting:
                # That is ownerless-job.
                continue
            told = ", ".join(who(look, thread) for thread in waiting)
            fields = {
                "domain": domain.name,
                "who": "a job that no thread held" if holder is None else who(look, holder),
                "work": f"{job.kind} {job.work}",
                "age": age(look.taken - job.since),
                "gave_up": told or "calls that the log does not name",
            }
            yield _Case(fields, None if holder is None else Root(holder, ()))


def _children(looked: _Looked, *, of_hook: bool) -> Iterator[_Case]:
    for root in looked.hanging:
        wait = root.thread.wait
        if wait.kind == "child" and (wait.function == "virHookCall") == of_hook:
            child = wait.children[0] if wait.children else None
            fields = {
                "who": who(looked.look, root.thread),
                "child": "a process that it started"
                if child is None
                else f"process {child.pid} ({child.command})",
                "child_pid": "PID" if child is None else child.pid,
                "age": age(_since(looked.look, root.thread)),
            }
            yield _Case(fields, root)


@_verdict
def _hook(looked: _Looked) -> Iterator[_Case]:
    yield from _children(looked, of_hook=True)


@_verdict
def _child(looked: _Looked) -> Iterator[_Case]:
    yield from _children(looked, of_hook=False)


@_verdict
def _other_daemon(looked: _Looked) -> Iterator[_Case]:
    for root, fields in _waiting(looked, "peer"):
        children = root.thread.wait.children
        peer = children[0] if children else None
        yield _Case(
            {
                **fields,
                "peer": "another daemon"
                if peer is None
                else f"process {peer.pid} ({peer.command}, {STATES.get(peer.state, 'running')})",
                "pid": "PID" if peer is None else peer.pid,
            },
            root,
        )


def _waiting(looked: _Looked, kind: str) -> Iterator[tuple[Root, dict[str, object]]]:
    for root in looked.hanging:
        if root.thread.wait.kind == kind:
            since = age(_since(looked.look, root.thread))
            yield root, {"who": who(looked.look, root.thread), "age": since}


@_verdict
def _name_lookup(looked: _Looked) -> Iterator[_Case]:
    for root, fields in _waiting(looked, "system call"):
        if root.thread.wait.system_call is None:
            yield _Case(fields, root)


@_verdict
def _fifo(looked: _Looked) -> Iterator[_Case]:
    for root, fields in _waiting(looked, "system call"):
        if root.thread.wait.is_fifo:
            yield _Case({**fields, "file": root.thread.wait.file}, root)


@_verdict
def _file_system(looked: _Looked) -> Iterator[_Case]:
    for root, fields in _waiting(looked, "system call"):
        mount = root.thread.wait.mount
        if mount is not None and not is_local(mount[1]):
            names = {"mount": mount[0], "type": mount[1], "call": call_in_words(root.thread)}
            yield _Case({**fields, **names}, root)


@_verdict
def _kernel(looked: _Looked) -> Iterator[_Case]:
    for root, fields in _waiting(looked, "system call"):
        names = {"pid": looked.look.pid, "tid": root.thread.tid}
        yield _Case({**fields, **names, "call": call_in_words(root.thread)}, root)


@_verdict
def _lock(looked: _Looked) -> Iterator[_Case]:
    for kind in ("mutex", "rwlock"):
        for root, fields in _waiting(looked, kind):
            yield _Case({**fields, "what": root.thread.wait.what}, root)


@_verdict
def _condition(looked: _Looked) -> Iterator[_Case]:
    for kind in ("condition", "event", "job"):
        for root, fields in _waiting(looked, kind):
            yield _Case({**fields, "function": root.thread.wait.function or "a condition"}, root)


@_verdict
def _computes(looked: _Looked) -> Iterator[_Case]:
    for root, fields in _waiting(looked, "computes"):
        if root.behind:
            yield _Case(fields, root)


@_verdict
def _workers(looked: _Looked) -> Iterator[_Case]:
    for server in looked.look.servers:
        pool = server.pool
        if pool is not None and pool.is_exhausted and pool.queued:
            waiting = count(len(pool.queued), "call")
            yield _Case(
                {
                    "server": server.name,
                    "workers": pool.workers,
                    "most": pool.most,
                    "queued": f"{waiting} {'waits' if len(pool.queued) == 1 else 'wait'}",
                    "more": 2 * pool.most,
                }
            )


@_verdict
def _client_requests(looked: _Looked) -> Iterator[_Case]:
    for server in looked.look.servers:
        for connection in server.connections:
            if connection.is_full:
                yield _Case(
                    {
                        "client": _client(looked.look, connection.pid),
                        "requests": connection.requests,
                        "most": connection.most_requests,
                        "silence": _silence(looked.look, connection.keepalive),
                        "more": 2 * connection.most_requests,
                    }
                )


def _silence(look: Look, keepalive: Keepalive | None) -> str:
    """Return what becomes of a connection that the daemon does not read."""
    if keepalive is None or keepalive.unanswered == 0:
        return ""
    return (
        f"; {keepalive.unanswered} of {keepalive.most} keepalive messages have no answer, and it "
        f"will close the connection in {duration(max(0.0, keepalive.closes - look.taken))}"
    )


def _client(look: Look, pid: int | None) -> str:
    if pid is None:
        return "a client"
    clients = (thread.client for thread in look.threads)
    command = next((one.command for one in clients if one is not None and one.pid == pid), None)
    return f"process {pid}" if command is None else f"process {pid} ({command})"


@_verdict
def _clients(looked: _Looked) -> Iterator[_Case]:
    for server in looked.look.servers:
        if server.most_clients is not None and len(server.clients) >= server.most_clients:
            yield _Case(
                {
                    "server": server.name,
                    "clients": len(server.clients),
                    "most": server.most_clients,
                    "more": 2 * server.most_clients,
                }
            )


@_verdict
def _starting(looked: _Looked) -> Iterator[_Case]:
    for thread in looked.look.threads:
        if thread.role == "start-up":
            yield _Case({"age": age(_since(looked.look, thread))})


@_verdict
def _dnsmasq_stopped(looked: _Looked) -> Iterator[_Case]:
    for network in looked.look.networks:
        state = STATES.get(network.state or "")
        if state is not None:
            yield _Case({"network": network.name, "pid": network.dnsmasq, "state": state})


@_verdict
def _dnsmasq_gone(looked: _Looked) -> Iterator[_Case]:
    for network in looked.look.networks:
        if network.dnsmasq is None:
            yield _Case({"network": network.name, "daemon": looked.daemon})


@_verdict
def _not_known(looked: _Looked) -> Iterator[_Case]:
    threads = [
        thread
        for thread in looked.look.threads
        if thread.wait.kind == NOT_KNOWN and thread.ended is not None
    ]
    if threads:
        fields = {
            "threads": count(len(threads), "thread"),
            "reason": threads[0].ended,
        }
        yield from (_Case(fields, root) for root in looked.hanging if root.thread in threads)
        yield _Case(fields)


@_verdict
def _busy(looked: _Looked) -> Iterator[_Case]:
    served = sum(thread.request is not None for thread in looked.look.threads)
    working = sum(thread.wait.kind not in AT_REST for thread in looked.look.threads)
    if number := served or working:
        who, what = ("call", "being served") if served else ("thread", "at work")
        busy = f"{count(number, who)} {'is' if number == 1 else 'are'} {what}"
        yield _Case({"busy": f"{busy}, {'not' if number == 1 else 'none of them'} for long"})


@_verdict
def _healthy(looked: _Looked) -> Iterator[_Case]:
    if not any(_busy(looked)):
        workers = sum("worker" in thread.role for thread in looked.look.threads)
        yield _Case({"workers": count(workers, "worker")})


def call_in_words(thread: SeenThread) -> str:
    """Return the system call that a thread waits in: ``openat(/pool/x)``."""
    wait = thread.wait
    what = wait.file
    if what is None and wait.descriptor is not None:
        what = f"descriptor {wait.descriptor}"
    return f"{wait.system_call or 'the kernel'}({what})" if what else f"{wait.system_call}"


def doing(look: Look, thread: SeenThread) -> str:
    """Return what a thread waits for, as a clause: ``it waits for the lock of domain vm1``."""
    wait, since = thread.wait, age(_since(look, thread))
    if wait.kind in _SAID:
        return _SAID[wait.kind]
    named = "" if wait.function is None else f", in {wait.function}"
    if wait.kind == "qemu" or wait.kind == "agent":
        asked = wait.command.name if wait.command and wait.command.name else "a command"
        other = "QEMU" if wait.kind == "qemu" else "the guest agent"
        return f"waits{since} for {other}'s answer to {asked}"
    if wait.kind == "event":
        return f"waits{since} for an event of QEMU{named}"
    if wait.kind == "job":
        domain = domain_name(look, thread)
        left = None if wait.until is None else wait.until - look.taken
        until = f", and gives up in {duration(left)}" if left is not None and left > 0 else ""
        return f"waits{since} for the job of {domain or 'a domain'}{until}"
    if wait.kind in ("mutex", "rwlock"):
        owner = look.thread(wait.owner)
        held = "" if owner is None else f", which thread {owner.tid} holds"
        late = ", although its own wait is over" if wait.is_late else ""
        return f"waits{since} for {wait.what}{held}{late}"
    if wait.kind == "child":
        child = wait.children[0] if wait.children else None
        name = "a child process" if child is None else f"process {child.pid} ({child.command})"
        return f"waits{since} for {name}{named}"
    if wait.kind == "peer":
        peer = wait.children[0] if wait.children else None
        name = "another daemon" if peer is None else f"process {peer.pid} ({peer.command})"
        return f"waits{since} for the answer of {name}{named}"
    if wait.kind == "system call":
        call = wait.what or f"the kernel, in {call_in_words(thread)}"
        return f"waits{since} for {call}{named}"
    if wait.kind == "computes":
        return f"is on a processor{named}"
    return f"waits{since} on a condition{named}"
