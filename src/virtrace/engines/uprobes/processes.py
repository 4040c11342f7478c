"""The processes of a recording: one, or a daemon and the QEMU of a guest."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from virtrace.image.model import Program as Image
from virtrace.image.process import Process
from virtrace.plan.model import Site
from virtrace.recipe.model import OF_QEMU, Recipe


@dataclass(frozen=True)
class Processes:
    """main: that of the trace, or the files of one that is to start.

    others: those of other probes, by the name of the probe.
    """

    main: Image
    others: Mapping[str, Process] = field(default_factory=dict)

    def of(self, site: Site) -> Image:
        return self.of_probe(site.probe)

    def of_probe(self, name: str) -> Image:
        return self.others.get(name, self.main)


def processes_of(recipe: Recipe, main: Image, qemu: Process | None) -> Processes:
    """qemu: of a recipe that traces a daemon, too."""
    if qemu is None:
        return Processes(main)
    return Processes(main, {probe.name: qemu for probe in recipe.part(OF_QEMU).probes})
