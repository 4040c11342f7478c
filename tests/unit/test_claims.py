"""No sentence of an explanation contradicts the numbers that it is about, whatever they are."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from string import Formatter
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support import samples
from tests.support.cases import Disk, built, call, explained, numbers
from virtrace.analysis.decision import STAT, decide
from virtrace.analysis.explain import statistics
from virtrace.analysis.explain.disks import EXPLAINER
from virtrace.analysis.explain.model import Traced
from virtrace.analysis.explain.trace import explain_calls
from virtrace.analysis.spans import Call
from virtrace.report.explanation import explanation_lines, fill_text
from virtrace.report.highlight import Style

KIB, GIB = 1 << 10, 1 << 30
# Near each other and near the size of the disk, where sentences go wrong.
SIZES = st.one_of(
    st.sampled_from([KIB, 4 * KIB, 64 * KIB, 8192, GIB - 512, GIB, GIB + 512, GIB + 4096, 2 * GIB]),
    st.integers(1, 4 * GIB),
)


@dataclass(frozen=True)
class Truth:
    """What a generated disk is. usage: what QEMU reported; None where it does not know."""

    capacity: int
    allocation: int
    physical: int
    usage: int | None
    offset: int | None
    size: int
    disk: Disk

    @property
    def on_device(self) -> bool:
        return self.disk.protocol == "host_device"

    @property
    def all_equal(self) -> bool:
        return self.capacity == self.allocation == self.physical


@st.composite
def disks(draw: st.DrawFn) -> Truth:
    capacity = draw(SIZES)
    format_ = draw(st.sampled_from(["raw", "qcow2"]))
    protocol = draw(st.sampled_from(["file", "host_device", "nbd"]))
    usage: int | None = draw(st.one_of(st.just(0), st.just(capacity), SIZES))
    if protocol == "host_device":
        usage = 0
    elif protocol == "nbd":
        usage = None
    offset = draw(st.one_of(st.none(), st.just(0), st.just(capacity), st.just(usage or 0), SIZES))
    if format_ == "qcow2" and offset is None:
        offset = 0
    size = draw(st.one_of(st.just(capacity), SIZES))
    image: dict[str, Any] = {}
    if format_ == "qcow2" and draw(st.booleans()):
        image["full-backing-filename"] = "/images/base.qcow2"
    if format_ == "qcow2" and draw(st.booleans()):
        image["snapshots"] = [{"name": "before"}]
    stats = {"unmap_operations": 3} if draw(st.booleans()) else {}
    disk = Disk(capacity, usage, offset, format_, protocol, stats=stats, image=image)
    # As libvirt decides; of network storage it cannot read the size itself.
    told = capacity if usage is None else usage
    decision = decide(told, offset, format_ == "qcow2" and protocol == "file")
    physical = told if protocol == "nbd" or decision.physical != STAT else size
    return Truth(capacity, decision.allocation_bytes, physical, usage, offset, size, disk)


# What the sentence of each cause claims, in terms of what is true.
CLAIMS: dict[str, Callable[[Truth], bool]] = {
    "no-actual-size": lambda it: it.usage is None and it.capacity in (it.allocation, it.physical),
    "device-written-at-end": lambda it: it.on_device and it.all_equal and it.offset == it.capacity,
    "internal-snapshot": lambda it: bool(it.usage) or it.usage == 0,
    "qcow2-on-device": lambda it: it.on_device and it.allocation == it.offset,
    "fully-allocated": lambda it: it.all_equal and it.usage == it.capacity,
    "fully-allocated-and-more": lambda it: it.usage is not None and it.usage >= it.capacity,
    "allocated-and-written-at-end": lambda it: (
        it.usage is not None and it.allocation == it.offset and it.allocation >= it.capacity
    ),
    "nothing-written": lambda it: it.allocation == 0 and not it.offset,
    "no-high-water-mark": lambda it: it.allocation == it.usage and it.physical == it.size,
    "no-high-water-mark-on-device": lambda it: it.on_device and it.offset is None,
    "discarded": lambda it: it.allocation == it.offset and (it.usage or 0) < it.allocation,
    "device-high-water-mark": lambda it: it.on_device and it.allocation == it.offset,
    "mark-equals-usage": lambda it: it.allocation == it.offset == it.usage,
    "mark-without-usage": lambda it: it.allocation == it.offset and it.usage is None,
    "high-water-mark": lambda it: it.allocation == it.offset != it.usage and it.usage is not None,
    "restarted": lambda it: it.allocation == it.usage and it.offset == 0,
    "external-snapshot": lambda it: it.usage is not None and not it.on_device,
    "qcow2": lambda it: it.allocation == it.usage and it.physical == it.size,
    "unknown": lambda _: True,
}
# Of calls without numbers, of guests that are shut off, and of what only another trace can show.
NOT_OF_A_RUNNING_DISK = {
    *("contradiction", "incomplete", "empty-drive", "unknown-disk", "qemu-gone", "error-not-seen"),
    *("error", "stopped-on-device", "stopped-on-file", "stopped-image-on-device", "filter-node"),
}


def test_every_cause_has_its_claim() -> None:
    assert {*CLAIMS, *NOT_OF_A_RUNNING_DISK} == {each.name for each in EXPLAINER.causes.causes}


@settings(max_examples=600, deadline=None)
@given(disks())
def test_what_is_said_of_a_running_guest_is_true(it: Truth) -> None:
    info = numbers(it.capacity, it.allocation, it.physical)
    one = explained(call(info, [it.disk], stats=it.disk.libvirts()))
    for finding in one.findings:
        assert CLAIMS[finding.cause.name](it), (finding.cause.name, it)
        sentence = fill_text(finding.cause.says, one.case)
        assert_no_two_values_read_the_same(finding.cause.says, one.case)
        if " equal" in sentence:
            assert it.all_equal, sentence
        if "not the space" in sentence:
            assert it.on_device or it.allocation != it.usage, sentence
    text = " ".join(" ".join(explanation_lines([one], Style(10**6), path="t")).split())
    assert ("--human shows" in text) == (len(by_reading(it)) < len({*info.values()}))


def by_reading(it: Truth) -> set[str]:
    """The numbers as virsh --human shows them: three decimals of the largest unit."""

    def shown(value: int) -> str:
        unit = 0
        number = float(value)
        while number >= 1024 and unit < 6:
            number /= 1024
            unit += 1
        if unit and round(number, 3) >= 1024:
            number, unit = number / 1024, unit + 1
        return f"{number:.3f} {unit}" if unit else str(value)

    return {shown(value) for value in (it.capacity, it.allocation, it.physical)}


def assert_no_two_values_read_the_same(text: str, case: Any) -> None:
    values = {name: value for name, value in case.numbers.items() if value is not None}
    used = [name for _, name, _, _ in Formatter().parse(text) if name in values]
    filled = {
        name: fill_text("".join(f"{{{each}}}\0" for each in used), case).split("\0")[at]
        for at, name in enumerate(used)
    }
    for one in used:
        for other in used:
            assert (filled[one] == filled[other]) == (values[one] == values[other])


@given(capacity=SIZES, allocation=st.one_of(st.just(0), SIZES), physical=SIZES)
def test_what_is_said_of_a_guest_that_is_shut_off_is_true(
    capacity: int, allocation: int, physical: int
) -> None:
    one = explained(call(numbers(capacity, allocation, physical), None))
    for finding in one.findings:
        if finding.cause.name == "stopped-on-device":
            assert capacity == allocation == physical
        elif finding.cause.name == "stopped-image-on-device":
            assert allocation == 0
        else:
            assert finding.cause.name == "stopped-on-file"
        assert_no_two_values_read_the_same(finding.cause.says, one.case)


def test_the_picture_that_began_it() -> None:
    """A file with all blocks, written at its end: three times 2.000 GiB, by ``--human``."""
    size = 2 * GIB
    disk = Disk(size, size + 4096, size)
    one = explained(call(numbers(size, size, size + 4096), [disk], stats=disk.libvirts()))
    lines = " ".join(" ".join(explanation_lines([one], Style(10**6), path="t")).split())
    assert lines.startswith(
        "vm1 vda: Allocation 2147483648 bytes reaches the end of the disk because its end was "
        "written since QEMU opened the image, and the host uses 2147487744 bytes for the file; "
        "neither shows how full the guest's file systems are."
    )
    assert (
        "--human shows 2.000 GiB for capacity and allocation and physical, which are up to 4,096 "
        "bytes apart"
    ) in lines


# The disks in a guest's statistics: what each sentence claims.
OF_STATISTICS: dict[str, Callable[[Truth], bool]] = {
    "no-actual-size": lambda it: it.usage is None and it.physical == it.capacity,
    "nothing-written": lambda it: it.usage == 0 and it.allocation == 0 and it.physical == it.size,
    "device-unwritten": lambda it: it.on_device and it.allocation == 0 and it.physical == it.size,
    "no-mark": lambda it: it.offset is None and it.allocation == 0 and it.physical == it.usage,
    "not-written": lambda it: it.offset == 0 and it.allocation == 0 and it.physical == it.usage,
    "mark-equals-usage": lambda it: it.allocation == it.physical == it.usage == it.offset,
    "mark-on-device": lambda it: it.on_device and it.physical == it.size,
    "mark": lambda it: it.allocation == it.offset and it.physical == it.usage,
}
NOT_OF_RUNNING_STATISTICS = {"contradiction", "shut-off", "unknown"}


def test_every_cause_of_statistics_has_its_claim() -> None:
    names = {each.name for each in statistics.EXPLAINER.causes.causes}
    assert {*OF_STATISTICS, *NOT_OF_RUNNING_STATISTICS} == names


@settings(max_examples=300, deadline=None)
@given(disks())
def test_what_is_said_of_statistics_is_true(it: Truth) -> None:
    usage = it.capacity if it.usage is None else it.usage
    it = replace(it, allocation=it.offset or 0, physical=usage or it.size)
    values = {
        "block.count": 1,
        "block.0.name": "vda",
        "block.0.path": it.disk.file,
        "block.0.capacity": it.capacity,
        "block.0.allocation": it.allocation,
        "block.0.physical": it.physical,
    }
    [one] = explain_calls(statistics.EXPLAINER, [statistics_call(it, values)], Traced([]))
    if it.usage == 0 and it.offset and not it.on_device:
        # What no file can be: written, and without a block.
        return
    for finding in one.findings:
        assert OF_STATISTICS[finding.cause.name](it), (finding.cause.name, it)
        assert_no_two_values_read_the_same(finding.cause.says, one.case)


def statistics_call(it: Truth, values: dict[str, Any]) -> Call:
    recorder = samples.Recorder()
    recorder.add("enter", "virDomainListGetStats", span=1, call=1)
    place = {"call": 1, "parent": 1}
    for sent, received in (
        samples.qmp("query-blockstats", 1, [it.disk.entry()]),
        samples.qmp("query-blockstats", 2, [], **{"query-nodes": True}),
        samples.qmp("query-named-block-nodes", 3, it.disk.nodes(), flat=True),
    ):
        recorder.add("point", "qmp.send", values=sent, **place)
        recorder.add("point", "qmp.reply", values=received, **place)
    returned = {"result": 1, "records": {"vm1": values}}
    recorder.add("exit", "virDomainListGetStats", values=returned, span=1, call=1)
    return built(recorder)
