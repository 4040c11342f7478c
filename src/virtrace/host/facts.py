"""The facts that a bundle contains about the host of a daemon, as plain data."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from virtrace.trace.format import Json


@dataclass(frozen=True)
class HostFacts:
    """Facts for a bundle; each can be unavailable.

    qemu: version, as virsh prints it.
    domains: by name, ``xml`` of the domain and ``log``, the end of its QEMU's log.
    settings: text of the daemon's configuration files, by path.
    backtrace: text, of all threads; None if it was not requested.
    snapshot: the document of a snapshot of the daemon; None if it was not requested.
    private: names that belong to this host and may be in none of the above, by kind.
    """

    qemu: Json
    domains: Mapping[str, Mapping[str, Json]]
    settings: Json
    backtrace: Json = None
    snapshot: Json = None
    private: Mapping[str, Iterable[str]] = field(default_factory=dict)
