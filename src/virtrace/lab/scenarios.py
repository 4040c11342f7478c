"""What `virtrace lab run` can set up and trace."""

from __future__ import annotations

from dataclasses import dataclass

from virtrace.lab.guest import GUEST

Virsh = tuple[str, ...]


@dataclass(frozen=True)
class Scenario:
    """commands: arguments of virsh, traced in this order. setup: likewise, before tracing."""

    name: str
    about: str
    commands: tuple[Virsh, ...]
    setup: tuple[Virsh, ...] = ()


def _domblkinfo(target: str) -> Virsh:
    return ("domblkinfo", GUEST.name, target)


def _one_disk(name: str, target: str) -> Scenario:
    return Scenario(name, f"{target}: {GUEST.disk(target).about}", (_domblkinfo(target),))


_EVERY_DISK = tuple(_domblkinfo(disk.target) for disk in GUEST.disks)

SCENARIOS = {
    scenario.name: scenario
    for scenario in (
        Scenario("disks", f"every disk of {GUEST.name}, one after the other", _EVERY_DISK),
        _one_disk("qcow2", "vda"),
        _one_disk("sparse", "vdb"),
        _one_disk("allocated", "vdc"),
        _one_disk("last-sector", "vdd"),
        Scenario("error", "a disk that the guest does not have", (_domblkinfo("vdz"),)),
        Scenario(
            "stopped",
            "every disk, with the guest shut off",
            _EVERY_DISK,
            setup=(("destroy", GUEST.name),),
        ),
    )
}
