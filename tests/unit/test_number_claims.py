"""No sentence on a number contradicts it: explanations of generated answers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support import samples
from tests.unit.test_claims import SIZES, assert_no_two_values_read_the_same
from virtrace.analysis.explain.model import Explanation
from virtrace.analysis.explain.trace import explain_trace
from virtrace.report.explanation import answer
from virtrace.trace import roles
from virtrace.trace.reader import Trace

KIB = 1024
COUNTS = st.one_of(st.integers(0, 3), st.integers(0, 1 << 62))
MOST = settings(max_examples=150, deadline=None)


def explained(recorder: samples.Recorder, explainer: str, *probes: str) -> list[Explanation[Any]]:
    """What one explainer says of these events. probes: further ones that were found."""
    names = {each.name: "point" if each.type == "point" else "span" for each in recorder.events}
    like = samples.HEADER["probes"][0]
    found = [
        {**like, "name": name, "kind": names.get(name, "point"), "role": roles.of_point(name)}
        for name in {**names, **dict.fromkeys(probes)}
    ]
    header: Any = {**samples.HEADER, "probes": found}
    every = explain_trace(Trace(header, recorder.events), "t")
    for each in every:
        for finding in each.findings:
            assert_no_two_values_read_the_same(finding.cause.says, each.case)
        assert "None" not in answer(each)
        assert "unknown" not in answer(each), answer(each)
    return [each for each in every if each.explainer == explainer]


def call(
    recorder: samples.Recorder,
    name: str,
    entered: dict[str, Any],
    returned: dict[str, Any],
    *points: tuple[str, dict[str, Any]],
) -> None:
    span = recorder.new_span()
    place = {"span": span, "call": span}
    recorder.add("enter", name, values=entered, **place)
    for point, values in points:
        recorder.add("point", point, values=values, parent=span, call=span)
    recorder.add("exit", name, values=returned, **place)


def causes(each: Explanation[Any]) -> set[str]:
    return {finding.cause.name for finding in each.findings}


@MOST
@given(capacity=SIZES, allocation=st.one_of(st.just(0), SIZES), flags=st.sampled_from([0, 1]))
def test_volumes(capacity: int, allocation: int, flags: int) -> None:
    recorder = samples.Recorder()
    info = {"type": 0, "capacity": capacity, "allocation": allocation}
    entered = {"pool": "p", "volume": "v", "key": "/p/v", "flags": flags}
    call(recorder, "virStorageVolGetInfoFlags", entered, {"result": 0, "info": info})
    [each] = explained(recorder, "volumes")
    holds: dict[str, Callable[[], bool]] = {
        "physical": lambda: flags == 1,
        "nothing-written": lambda: flags == 0 and allocation == 0,
        "sparse": lambda: flags == 0 and 0 < allocation < capacity,
        "full": lambda: flags == 0 and allocation == capacity,
        "more": lambda: flags == 0 and allocation > capacity,
    }
    assert causes(each) == {name for name, is_true in holds.items() if is_true()}


@MOST
@given(kind=st.integers(0, 13), state=st.integers(0, 4), sizes=st.tuples(SIZES, SIZES, SIZES))
def test_pools(kind: int, state: int, sizes: tuple[int, int, int]) -> None:
    recorder = samples.Recorder()
    info = dict(zip(("capacity", "allocation", "available"), sizes), state=state)
    other = ("pool", {"name": "another", "type": 13 - kind})
    own = ("pool", {"name": "p", "type": kind})
    returned = {"result": 0, "info": info}
    call(recorder, "virStoragePoolGetInfo", {"pool": "p"}, returned, other, own)
    [each] = explained(recorder, "volumes")
    expected = {"file-system" if kind in (0, 1, 2) else "of-backend"}
    assert causes(each) == expected | ({"inactive"} if state == 0 else set())


@MOST
@given(st.tuples(*[st.integers(1, 4)] * 4), st.integers(1, 64), SIZES)
def test_hosts(topology: tuple[int, ...], cpus: int, memory: int) -> None:
    recorder = samples.Recorder()
    nodes, sockets, cores, threads = topology
    info = {
        **{"model": "x", "memory": memory, "cpus": cpus, "mhz": 1, "nodes": nodes},
        **{"sockets": sockets, "cores": cores, "threads": threads},
    }
    call(recorder, "virNodeGetInfo", {}, {"result": 0, "info": info})
    [each] = explained(recorder, "hosts")
    even = nodes * sockets * cores * threads == cpus
    assert causes(each) == {"host" if even else "uneven"}
    assert f"{cpus} CPUs online" in answer(each)


def stat(user: int, system: int, rss: int = 1) -> str:
    """/proc/PID/stat, with a name that has what stands behind it."""
    between = " ".join(["0"] * 10)
    return f"7 (a) b) S {between} {user} {system} 0 0 20 0 4 0 1 99 {rss} 0\n"


TICKS = st.integers(0, 1 << 40)


@MOST
@given(user=TICKS, system=TICKS, other=st.one_of(st.none(), TICKS), memory=SIZES)
def test_cpu_time_of_a_process(user: int, system: int, other: int | None, memory: int) -> None:
    """other: what libvirt answers in place of what it read."""
    recorder = samples.Recorder()
    time = user + system if other is None else other
    kib = memory // KIB
    info = {"state": 1, "maxMem": kib, "memory": kib, "cpuTime": time * 10_000_000}
    read = {"path": "/proc/7/stat", "length": 1, "text": stat(user, system)}
    point = ("file.read.quiet", read)
    call(recorder, "virDomainGetInfo", {"domain": "vm1"}, {"result": 0, "info": info}, point)
    [each] = explained(recorder, "cpu", "file.read")
    right = time == user + system
    assert each.findings[0].cause.name == ("of-process" if right else "contradiction")
    [fact] = each.case.facts
    assert fact.value == time * 10_000_000
    assert ("from /proc/7/stat" in fact.meaning) == right


@MOST
@given(usage=TICKS, user=TICKS, system=TICKS)
def test_cpu_time_of_a_cgroup(usage: int, user: int, system: int) -> None:
    recorder = samples.Recorder()
    text = f"usage_usec {usage}\nuser_usec {user}\nsystem_usec {system}\n"
    params = {"cpu_time": usage * 1000, "user_time": user * 1000, "system_time": system * 1000}
    read = ("file.read", {"path": "/sys/fs/cgroup/m/cpu.stat", "length": 1, "text": text})
    entered = {"domain": "vm1", "start_cpu": -1, "ncpus": 1}
    call(recorder, "virDomainGetCPUStats", entered, {"result": 3, "params": params}, read)
    [each] = explained(recorder, "cpu")
    adds_up = usage == user + system
    assert causes(each) == {"of-cgroup"} | (set() if adds_up else {"parts"})


@MOST
@given(st.lists(TICKS, min_size=1, max_size=4), st.integers(0, 4))
def test_times_of_several_guests_are_not_mixed_up(ticks: list[int], wrong: int) -> None:
    """Each guest's file is the next one that says its time. wrong: whose answer is another."""
    recorder = samples.Recorder()
    points = [
        ("file.read.quiet", {"path": f"/proc/{pid}/stat", "length": 1, "text": stat(time, 0)})
        for pid, time in enumerate(ticks, 1)
    ]
    records = {
        f"vm{pid}": {"cpu.time": (time + (pid == wrong)) * 10_000_000, "vcpu.current": 1}
        for pid, time in enumerate(ticks, 1)
    }
    returned = {"result": len(ticks), "records": records}
    call(recorder, "virDomainListGetStats", {}, returned, *points)
    for each in explained(recorder, "cpu", "file.read"):
        [time] = each.case.times
        if time.source is not None:
            assert time.source.numbers["time"] == time.value.value
        elif len(ticks) == 1 or wrong == 0:
            assert causes(each) == {"contradiction"}


@MOST
@given(st.lists(COUNTS, min_size=8, max_size=8), st.booleans(), st.booleans())
def test_network(numbers: list[int], swapped: bool, is_wrong: bool) -> None:
    recorder = samples.Recorder()
    counted = ("bytes", "packets", "errs", "drop")
    fields = [f"{way}_{what}" for way in ("rx", "tx") for what in counted]
    stats = dict(zip(fields, numbers))
    names = {"packets": "pkts"}
    answered: dict[str, Any] = {"net.count": 1, "net.0.name": "tap0"}
    for field, number in stats.items():
        way, what = field.split("_")
        answered[f"net.0.{way}.{names.get(what, what)}"] = number
    answered["net.0.rx.bytes"] += is_wrong
    point = ("net.counters", {"device": "tap0", "swapped": swapped, "stats": stats, "result": 0})
    returned = {"result": 1, "records": {"vm1": answered}}
    call(recorder, "virDomainListGetStats", {}, returned, point)
    [each] = explained(recorder, "network")
    view = "guest-view" if swapped else "host-view"
    assert each.findings[0].cause.name == ("contradiction" if is_wrong else view)
    facts = {fact.name: fact for fact in each.case.facts}
    assert ("the host sent" in facts["rx.bytes"].meaning) == swapped


@MOST
@given(current=SIZES, maximum=SIZES, rss=SIZES, updated=st.sampled_from([None, 0, 5]))
def test_memory(current: int, maximum: int, rss: int, updated: int | None) -> None:
    recorder = samples.Recorder()
    current, maximum = sorted((current, maximum))
    record = {"balloon.current": current, "balloon.maximum": maximum, "balloon.rss": rss}
    if updated is not None:
        record["balloon.last-update"] = updated
    returned = {"result": 1, "records": {"vm1": record}}
    call(recorder, "virDomainListGetStats", {}, returned)
    [each] = explained(recorder, "memory")
    found = causes(each)
    assert ("rss-above-maximum" in found) == (rss > maximum)
    assert ("nothing-reported" in found) == (updated == 0)
    if "all-given" in found:
        assert current == maximum
    if "given" in found:
        assert current < maximum


@MOST
@given(reads=COUNTS, writes=COUNTS, wrong=st.sampled_from([0, 1]))
def test_counters(reads: int, writes: int, wrong: int) -> None:
    recorder = samples.Recorder()
    entry = {
        "qdev": "/machine/peripheral/virtio-disk0/virtio-backend",
        "stats": {"rd_operations": reads, "wr_operations": writes},
    }
    sent, received = samples.qmp("query-blockstats", 1, [entry])
    params = {"rd_operations": reads + wrong, "wr_operations": writes}
    points = (("qmp.send", sent), ("qmp.reply", received))
    entered = {"domain": "vm1", "disk": "vda"}
    returned = {"result": 0, "params": params}
    call(recorder, "virDomainBlockStatsFlags", entered, returned, *points)
    [each] = explained(recorder, "counters")
    assert each.findings[0].cause.name == ("contradiction" if wrong else "counters")
    if not wrong:
        assert f"read {reads:,} times and written {writes:,} times" in answer(each)


@MOST
@given(st.lists(st.booleans(), min_size=1, max_size=12))
def test_errors(returned: list[bool]) -> None:
    """returned: of each error, whether an API failed with it."""
    recorder = samples.Recorder()
    for failed in returned:
        recorder.add("point", "error", values={"code": 1, "message": "broken"})
        if failed:
            recorder.add("point", "api.failed", values={"api": "virDomainResume"})
    [each] = explained(recorder, "errors", "api.failed")
    facts = {fact.name: fact.value for fact in each.case.facts}
    assert (facts["errors"], facts["returned"]) == (len(returned), sum(returned))
    assert ("no API failed with it" in answer(each)) == (not all(returned))
    assert (", an API failed with it" in answer(each)) == any(returned)


@MOST
@given(st.lists(st.integers(0, 3 * 10**9), min_size=1, max_size=6))
def test_monitors(waits: list[int]) -> None:
    """waits: ns until QEMU answers each command."""
    recorder = samples.Recorder()
    passed = 0
    for number, wait in enumerate(waits, 1):
        sent, received = samples.qmp("query-status", number, {})
        for name, values in (("qmp.send", sent), ("qmp.reply", received)):
            event = recorder.add("point", name, values=values)
            recorder.events[-1] = event._replace(t_ns=event.t_ns + passed)
            passed += wait if name == "qmp.send" else 0
    # The recorder's own clock goes on between a command and its reply.
    longest = max(waits) + 213_000
    [each] = explained(recorder, "monitors")
    late = sum(wait + 213_000 >= 10**9 for wait in waits)
    assert each.findings[0].cause.name == ("late" if late else "well")
    facts = {fact.name: fact.value for fact in each.case.facts}
    assert facts == {"commands": late or len(waits), "longest": longest}


@MOST
@given(kinds=st.lists(st.integers(0, 2), max_size=5), errors=st.integers(0, 3))
def test_refreshes(kinds: list[int], errors: int) -> None:
    recorder = samples.Recorder()
    volumes = [("volume", {"name": f"v{at}", "type": kind}) for at, kind in enumerate(kinds)]
    raised = [("error", {"code": 1, "message": "broken"})] * errors
    returned = {"result": 0}
    call(recorder, "virStoragePoolRefresh", {"pool": "p"}, returned, *volumes, *raised)
    [each] = explained(recorder, "pools")
    assert each.findings[0].cause.name == ("got-over" if errors else "refreshed")
    noun = "volume" if len(kinds) == 1 else "volumes"
    assert f"found {len(kinds)} {noun} in " in answer(each)
    assert [fact.value for fact in each.case.facts] == [len(kinds), errors]
