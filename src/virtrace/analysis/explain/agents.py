"""What agents in guests were asked, and what they answered; texts in agents.yaml."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from virtrace.analysis.explain.messages import brief, no_return
from virtrace.analysis.explain.model import (
    CallCase,
    Catalogue,
    Explainer,
    Fact,
    Nanoseconds,
    Node,
    register_messages,
)
from virtrace.analysis.quoted import Evidence
from virtrace.analysis.spans import Call, Point
from virtrace.trace import roles
from virtrace.trace.format import Event, Json

# What the message has, by cause; one text has to be there.
_MESSAGES = {
    "not-configured": ("guest agent is not configured",),
    "not-connected": ("guest agent is not connected",),
    "silent": (
        *("Guest agent not available for now", "agent command timed out", "agent didn't respond"),
        *("guest agent didn't respond to synchronization", "Unable to sync with guest agent"),
    ),
    "gone": ("from agent socket", "Guest agent disappeared", "agent monitor was removed"),
    "refused": ("unable to execute QEMU agent command", "execute QEMU guest agent command"),
}
_MOST_SHOWN = 10


@dataclass(frozen=True)
class AgentCase(CallCase):
    """One client's call that asked an agent, or would have. end_ns: of the trace."""

    end_ns: int

    @cached_property
    def commands(self) -> list[Event]:
        """What was asked, in order of time."""
        return [
            node.event
            for node in self.call.nodes()
            if isinstance(node, Point)
            and node.event.role == roles.AGENT_COMMAND
            and _command(node.event) is not None
        ]

    @cached_property
    def error(self) -> str | None:
        return brief(super().error)

    @property
    def is_of_agent(self) -> bool:
        texts = [text for texts in _MESSAGES.values() for text in texts]
        return bool(self.commands) or any(text in (self.error or "") for text in texts)

    @property
    def domain(self) -> str:
        return self.call.domain or "a guest"

    @property
    def subject(self) -> tuple[str, ...]:
        return self.domain, self._asked

    @property
    def _asked(self) -> str:
        names = dict.fromkeys(str(_command(each)) for each in self.commands)
        procedure = (self.call.procedure or self.call.root.name).removeprefix("remoteDispatch")
        return ", ".join([*names][:_MOST_SHOWN]) or procedure.removeprefix("qemuDispatch")

    @property
    def names(self) -> Mapping[str, Json]:
        client = (self.call.client or {}).get("process-id")
        return {
            **super().names,
            "domain": self.domain,
            "command": str(_command(self.commands[-1])) if self.commands else "a command",
            "client": f"process {client}" if type(client) is int else "a client",
        }

    @property
    def numbers(self) -> Mapping[str, int | None]:
        begun = self.commands[-1].t_ns if self.commands else self.call.root.t_enter_ns
        until = self.call.root.t_exit_ns
        return {"since": Nanoseconds(max((until or self.end_ns) - begun, 0))}

    @property
    def key(self) -> object:
        # What was answered is of interest once; a failure has its own time.
        return self.subject if not self.call.failed and self.call.root.returned else self.call.id

    @property
    def facts(self) -> Sequence[Fact]:
        begun = self.call.root.t_enter_ns
        return [
            Fact(
                f"asked {_command(each)}",
                Nanoseconds(each.t_ns - begun),
                "after the call began",
                each.seq,
            )
            for each in self.commands[:_MOST_SHOWN]
        ]


def _command(event: Event) -> str | None:
    """Return the command in a text for an agent; those for QEMU have an id, too."""
    document = event.values.get("json")
    if not isinstance(document, dict) or "id" in document:
        return None
    command = document.get("execute")
    return command if isinstance(command, str) else None


class _Reader:
    """A call that has not returned waits until the trace ends."""

    def __init__(self) -> None:
        self._open: list[Call] = []

    def take(self, node: Node) -> Sequence[AgentCase]:
        if not isinstance(node, Call):
            return ()
        if node.root.returned is None:
            self._open.append(node)
            return ()
        case = AgentCase(node, 0)
        return [case] if case.is_of_agent else ()

    def finish(self, end_ns: int) -> Iterator[AgentCase]:
        cases = (AgentCase(call, end_ns) for call in self._open)
        return (case for case in cases if case.is_of_agent)


_CAUSES: Catalogue[AgentCase] = Catalogue(Path(__file__).with_name("agents.yaml"))
EXPLAINER = Explainer("agents", _CAUSES, lambda _: _Reader())
register_messages(_CAUSES, {**_MESSAGES, "error": ("",)})


@_CAUSES.condition("waiting")
def _waiting(case: AgentCase) -> list[Evidence] | None:
    evidence = no_return(case.call)
    if evidence is None:
        return None
    asked = Evidence("what was asked last", None, case.commands[-1].seq)
    return [asked, *evidence]


@_CAUSES.condition("answered")
def _answered(case: AgentCase) -> list[Evidence] | None:
    if case.call.failed or case.call.root.returned is None:
        return None
    return [Evidence("what was asked last", None, case.commands[-1].seq)]


@_CAUSES.condition("unknown")
def _unknown(case: AgentCase) -> list[Evidence]:
    return []
