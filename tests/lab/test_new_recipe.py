"""Recipes that virtrace wrote by itself, unedited, on a real daemon."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.lab.tracing import DISKS, calls_of, exchanges, printed_info, span, whole_trace
from tests.support.block_stats import COUNTERS
from tests.support.command import virtrace
from tests.support.paths import DOCS
from virtrace.binary import x86_64
from virtrace.binary.dwarf import declarations
from virtrace.cli import new_recipe
from virtrace.lab.daemon import Lab
from virtrace.recipe import catalogue
from virtrace.recipe.model import DriverMethod
from virtrace.recipe.prototype import normal_type
from virtrace.targets import LIBVIRT
from virtrace.targets.libvirt import public_api
from virtrace.targets.processes import check_traceable

API = "virDomainGetBlockInfo"
METHOD, GATHER = "qemuDomainGetBlockInfo", "qemuDomainBlocksStatsGather"
# By API: what virsh is asked.
OTHERS = {
    "virDomainGetInfo": "dominfo vm1",
    "virDomainBlockStatsFlags": "domblkstat vm1 vda",
    "virDomainGetXMLDesc": "dumpxml vm1",
    "virConnectGetAllDomainStats": "domstats",
}


@pytest.fixture
def is_stripped(lab: Lab, request: pytest.FixtureRequest) -> bool:
    return "debug_lab" not in request.fixturenames


def written(lab: Lab, api: str, file: Path) -> Path:
    done = virtrace("recipe", "new", api, "-p", str(lab.pid), "-o", str(file))
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(f"{file}: prune it, then: virtrace recipe check {file}")
    return file


@pytest.mark.parametrize("disk", ["vda", "vdd"])
def test_unedited_it_traces_the_method_and_what_that_calls(
    lab: Lab, tmp_path: Path, disk: str
) -> None:
    recipe = written(lab, API, tmp_path / "new.yaml")
    output = tmp_path / "t.jsonl"
    options = ("-p", str(lab.pid), "-o", str(output))
    asked = lab.virsh_command("domblkinfo", "vm1", disk)
    done = virtrace("record", str(recipe), *options, "--", *asked)
    assert done.returncode == 0, done.stderr
    # What virsh says and what QEMU says, when they are asked directly.
    [printed] = printed_info(lab.virsh_checked("domblkinfo", "vm1", disk))
    entries = lab.qmp({"execute": "query-blockstats"})["return"]
    [entry] = [one for one in entries if f"/virtio-disk{DISKS.index(disk)}/" in one["qdev"]]

    [call] = calls_of(whole_trace(output))
    for name in (API, METHOD):
        traced = span(call, name)
        assert traced.arguments == {"domain": "vm1", "disk": disk, "flags": 0}
        assert traced.returned == {"result": 0, "info": printed}
    gathered = span(call, GATHER).returned
    assert gathered is not None
    assert gathered["stats"]["capacity"] == printed["capacity"]
    for name, qmp_name in COUNTERS.items():
        assert gathered["stats"][name] == entry["stats"][qmp_name]


@pytest.mark.parametrize("api", OTHERS)
def test_what_it_writes_is_found(lab: Lab, tmp_path: Path, api: str, is_stripped: bool) -> None:
    recipe = written(lab, api, tmp_path / "new.yaml")
    checked = virtrace("recipe", "check", str(recipe), "-p", str(lab.pid))
    assert (checked.returncode, checked.stderr) == (0, ""), checked.stdout
    assert checked.stdout.startswith(f"{api}: every probe that is not optional was found\n")
    output = tmp_path / "t.jsonl"
    options = ("-p", str(lab.pid), "-o", str(output))
    asked = lab.virsh_command(OTHERS[api])
    assert virtrace("record", str(recipe), *options, "--", *asked).returncode == 0
    calls = calls_of(whole_trace(output))
    assert calls
    [root, method, *_] = catalogue.find_recipe(str(recipe)).spans
    assert (root.name, method.find) == (api, DriverMethod(api))
    if not is_stripped:
        # By libvirt's convention, which only debug info tells to hold here.
        assert method.name == api.replace("vir", "qemu", 1)
    for call in calls:
        assert call.root.name == api
        traced = span(call, method.name)
        for name in call.root.arguments.keys() & traced.arguments.keys():
            assert traced.arguments[name] == call.root.arguments[name]
        assert traced.returned is not None
        assert call.root.returned is not None
        assert traced.returned["result"] == call.root.returned["result"]


def test_it_is_the_same_every_time_and_from_files_alone(lab: Lab, tmp_path: Path) -> None:
    text = written(lab, API, tmp_path / "new.yaml").read_text()
    maps = Path(f"/proc/{lab.pid}/maps").read_text()
    files = sorted({line.split()[-1] for line in maps.splitlines() if "/" in line})
    for part in (r"/libvirt\.so\.0\.\d+\.\d+$", r"/libvirt_driver_qemu\.so$", r"/libvirtd$"):
        [binary] = [file for file in files if re.search(part, file)]
        done = virtrace("recipe", "new", API, "--against", binary)
        assert (done.returncode, done.stderr) == (0, "")
        assert done.stdout == text
    checked = virtrace("recipe", "check", "blockinfo", "--against", binary)
    running = virtrace("recipe", "check", "blockinfo", "-p", str(lab.pid))
    assert (checked.returncode, checked.stderr) == (0, "")
    here, there = (
        re.sub(r"\(\S+ (pid \d+|not running)\)", "", " ".join(one.stdout.split()))
        for one in (checked, running)
    )
    assert here == there


def test_there_is_none_for_what_is_no_function(stock_lab: Lab, tmp_path: Path) -> None:
    file = tmp_path / "new.yaml"
    options = ("-p", str(stock_lab.pid), "-o", str(file))
    done = virtrace("recipe", "new", "virDomainGetBlockInf", *options)
    assert done.returncode == 2
    assert "exports no virDomainGetBlockInf" in done.stderr
    assert f"did you mean {API} " in done.stderr
    assert not file.exists()
    file.write_text("mine")
    done = virtrace("recipe", "new", API, *options)
    assert done.returncode == 2
    assert f"{file} already exists" in done.stderr
    assert file.read_text() == "mine"


@pytest.mark.matrix
def test_a_name_that_debug_info_does_not_know_is_found_by_its_callers(
    stock_lab: Lab, debug_lab: Lab, tmp_path: Path
) -> None:
    """A recipe written for a stripped file, on the same code with debug info."""
    recipe = written(stock_lab, "virDomainGetXMLDesc", tmp_path / "new.yaml")
    method = catalogue.find_recipe(str(recipe)).spans[1]
    assert method.name == "method_of_virDomainGetXMLDesc"
    output = tmp_path / "t.jsonl"
    options = ("-p", str(debug_lab.pid), "-o", str(output))
    asked = debug_lab.virsh_command("dumpxml", "vm1")
    assert virtrace("record", str(recipe), *options, "--", *asked).returncode == 0
    trace = whole_trace(output)
    levels = {probe["name"]: probe["level"] for probe in trace.header["probes"]}
    assert levels["virDomainGetXMLDesc"] == "dwarf"
    assert levels[method.name] == "inferred"
    [call] = calls_of(trace)
    assert span(call, method.name).arguments == {"domain": "vm1", "flags": 0}


def test_of_whatever_api_the_recipe_loads(stock_lab: Lab) -> None:
    """Of one in ten; loaded by `write` itself."""
    process = check_traceable(stock_lab.pid)
    libvirt = process.module("libvirt.so.0")
    assert libvirt is not None
    exported = {name for _, _, name in libvirt.elf.exported_functions()}
    names = sorted(exported & {*public_api.functions()})[::10]
    assert len(names) > 40
    for name in names:
        assert f"\nname: {name}\n" in new_recipe.new_recipe(name, process)


@pytest.mark.matrix
def test_the_public_api_is_declared_as_debug_info_has_it(debug_lab: Lab) -> None:
    """How each argument is handed over, and the result: by their kinds and sizes."""
    process = check_traceable(debug_lab.pid)
    libvirt = process.module("libvirt.so.0")
    assert libvirt is not None
    known = public_api.functions()
    at = {start: name for start, _, name in libvirt.elf.exported_functions() if name in known}
    debug = process.debug_info(libvirt)
    assert debug is not None
    described = declarations(debug.path, at, x86_64.ABI)
    assert len(described) > 450

    def kind(spelled: str) -> tuple[type, int]:
        ctype = LIBVIRT.type_named(normal_type(spelled))
        return type(ctype), ctype.size

    for entry, one in described.items():
        declared = known[at[entry]]
        assert kind(declared.returns) == kind(one.returns), declared
        assert [kind(parameter.type) for parameter in declared.parameters] == [
            kind(spelled) for spelled, _ in one.parameters
        ], declared


PAGE = (DOCS / "first-recipe.md").read_text()


def test_the_first_recipe(stock_lab: Lab, tmp_path: Path) -> None:
    """The page: what is written for it, and what the edited one shows."""
    if stock_lab.libvirt_version < (8, 10):
        pytest.xfail("virDomainObjBeginJob came with libvirt 8.10")
    text = written(stock_lab, "virDomainSuspend", tmp_path / "new.yaml").read_text()
    if stock_lab.libvirt_version == (9, 0, 0):
        shown = re.search(r"^```\n(spans:.*?)^```", PAGE, re.M | re.S)
        assert shown is not None
        assert shown[1] in text
    edited = tmp_path / "suspend.yaml"
    [whole] = re.findall(r"^```yaml\n(.*?)^```", PAGE, re.M | re.S)
    edited.write_text(whole)
    output = tmp_path / "t.jsonl"
    options = ("-p", str(stock_lab.pid), "-o", str(output))
    asked = stock_lab.virsh_command("suspend", "vm1")
    try:
        done = virtrace("record", str(edited), *options, "--", *asked)
    finally:
        stock_lab.virsh_checked("resume", "vm1")
    assert done.returncode == 0, done.stderr
    [call] = calls_of(whole_trace(output))
    assert span(call, "method_of_virDomainSuspend").arguments == {"domain": "vm1"}
    assert span(call, "virDomainObjBeginJob").arguments == {"job": 3}
    assert span(call, "qemuProcessStopCPUs").arguments == {"reason": 1}
    assert [one.command for one in exchanges(call)] == ["stop"]
    typo = tmp_path / "typo.yaml"
    typo.write_text(whole.replace("job: job", "job: jbo"))
    refused = virtrace("recipe", "check", "./typo.yaml", cwd=tmp_path)
    assert refused.returncode == 2
    for line in refused.stderr.splitlines():
        assert f"    {line}\n" in PAGE
