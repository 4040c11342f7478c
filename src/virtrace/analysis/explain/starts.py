"""Why a guest does not start: conditions here, texts in starts.yaml."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from virtrace.analysis.explain.messages import (
    UNSEEN,
    brief,
    errors_of,
    no_return,
    path_in,
    quoted,
    text_of,
    told,
)
from virtrace.analysis.explain.model import (
    Catalogue,
    EachCall,
    Explainer,
    Fact,
    Nanoseconds,
    register_messages,
)
from virtrace.analysis.explain.refusals import RefusableCase
from virtrace.analysis.quoted import Evidence
from virtrace.analysis.spans import Span
from virtrace.trace.format import Event, Json

_APIS = frozenset({"virDomainCreate", "virDomainCreateWithFlags", "virDomainCreateXML"})
# The steps of a start, in words.
_STEPS = {
    "qemuProcessInit": "checks the definition",
    "qemuProcessPrepareDomain": "completes the definition",
    "qemuProcessPrepareHost": "prepares the host: files, networks, devices",
    "qemuProcessLaunch": "runs QEMU and connects to it",
    "qemuProcessStop": "removes what was begun",
}


@dataclass(frozen=True)
class StartCase(RefusableCase):
    """One call that starts a guest."""

    @property
    def subject(self) -> tuple[str, ...]:
        domain = self.call.root.arguments.get("domain")
        return (domain if isinstance(domain, str) else "a new guest",)

    @cached_property
    def error(self) -> str | None:
        """The message that the client got: errors of the cleanup after it are not told."""
        before = [*self._before_cleanup(self.call.errors()), *self._end_of_qemu]
        return told(self.call, before or errors_of(self.call))

    @cached_property
    def _end_of_qemu(self) -> list[Event]:
        """What another thread raised because QEMU ended, after libvirt got over errors of the call.

        Libvirt copies that error to the thread of the call, which raises none then.
        """
        own = self._before_cleanup(self.call.errors())
        return [
            each
            for each in self._before_cleanup(self.call.apart)
            if own
            and each.t_ns > own[-1].t_ns
            and any(text in (text_of(each) or "") for text in _MESSAGES["qemu-ended"])
        ]

    def _before_cleanup(self, errors: Iterable[Event]) -> list[Event]:
        cleanup = [each.t_enter_ns for each in self.steps if each.name == "qemuProcessStop"]
        return [each for each in errors if not cleanup or each.t_ns < cleanup[0]]

    @property
    def reasons(self) -> list[Evidence] | None:
        errors = super().reasons
        return errors and [*errors, *quoted(self._end_of_qemu, is_apart=True)]

    @cached_property
    def steps(self) -> list[Span]:
        return [
            each for each in self.call.nodes() if isinstance(each, Span) and each.name in _STEPS
        ]

    @property
    def failed_step(self) -> Span | None:
        return next((each for each in self.steps if each.failed), None)

    @property
    def names(self) -> Mapping[str, Json]:
        domain = self.call.root.arguments.get("domain")
        what, refusal = path_in(self.error) or "a file", self.refusal
        return {
            "domain": domain if isinstance(domain, str) else None,
            "error": brief(self.error) or UNSEEN,
            "file": path_in(self.error),
            **refusal.names(what),
            "kvm": refusal.kvm or "KVM cannot be used",
            "taken": refusal.taken or "something that it needs is in use",
            "what": what,
        }

    @property
    def facts(self) -> Sequence[Fact]:
        steps = [
            Fact(
                _STEPS[step.name],
                "not seen to end" if step.duration_ns is None else Nanoseconds(step.duration_ns),
                f"{step.name}{' failed' if step.failed else ''}",
                step.exit_seq,
            )
            for step in self.steps
        ]
        return [*steps, *self.refusal.facts]


_CAUSES: Catalogue[StartCase] = Catalogue(Path(__file__).with_name("starts.yaml"))
EXPLAINER = Explainer(
    "starts",
    _CAUSES,
    lambda traced: EachCall(
        lambda call: StartCase(call, traced.failure(call)) if call.root.name in _APIS else None
    ),
)
# What the message of libvirt, QEMU or the kernel has, by cause; one text has to be there.
_MESSAGES = {
    "already-running": ("is already running", "is already active"),
    "locked": ('" lock', "Lockspace"),
    "no-permission": ("Permission denied", "Operation not permitted"),
    "missing-file": ("No such file or directory", "missing backing store"),
    "bad-image": ("Image is not in", "Could not read qcow2 header", "Could not read image header"),
    "no-memory": ("Cannot allocate memory", "cannot set up guest memory"),
    "in-use": ("Address already in use", "Device or resource busy", "in use by"),
    "no-kvm": (
        *("KVM kernel module", "failed to initialize kvm", "KVM is not available"),
        "does not support virt type 'kvm'",
    ),
    "no-network": (
        *("' is not active", "Network not found", "Cannot get interface"),
        "no connection driver available for network:",
    ),
    "probing": ("for probing", "Failed to probe "),
    "hook": ("Hook script execution failed",),
    "timeout": ("did not show up", "Timed out"),
    "not-supported": ("unsupported configuration", "not supported by this QEMU", "invalid option"),
    "qemu-ended": ("process exited while connecting", "unexpectedly closed the monitor"),
    "error": ("",),
}
register_messages(_CAUSES, _MESSAGES)


@_CAUSES.condition("incomplete")
def _incomplete(case: StartCase) -> list[Evidence] | None:
    return no_return(case.call)


@_CAUSES.condition("started")
def _started(case: StartCase) -> list[Evidence] | None:
    return None if case.call.failed or case.call.root.returned is None else []


@_CAUSES.condition("unknown")
def _unknown(case: StartCase) -> list[Evidence] | None:
    step = case.failed_step
    return [Evidence(f"{step.name} failed", seq=step.exit_seq)] if step else []
