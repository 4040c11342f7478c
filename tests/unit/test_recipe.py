"""Recipes: what is read, what is refused, and how it is said."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import yaml

from virtrace.errors import RecipeError, UsageError
from virtrace.recipe import catalogue, loader, path, prototype, selection
from virtrace.recipe.folder import fragments
from virtrace.recipe.loader import dumps, from_document, loads
from virtrace.recipe.path import (
    Argument,
    Backtrace,
    Caller,
    Deref,
    Elements,
    Form,
    Format,
    Member,
    Records,
    Returned,
    TypedParams,
)
from virtrace.recipe.path import Path as CapturePath
from virtrace.recipe.prototype import Parameter

GOOD = """\
virtrace: 1
name: states
about: |
  What it is about.
try: virsh domstate DOMAIN
spans:
  - prototype: int virDomainGetState(virDomainPtr domain, int *state, unsigned int flags)
    module: libvirt.so.0
    root: true
    enter: {domain: domain->name, flags: flags}
    exit: {result: return, state: '*state'}
  - function: qemuDomainGetState
    module: libvirt_driver_qemu.so
    optional: true
    enter: {flags: flags}
points:
  - name: qmp.send
    usdt: libvirt:qemu_monitor_send_msg
    module: libvirt_driver_qemu.so
    arguments: void *mon, const char *text
    capture: {mon: mon, text: text}
    json: text
  - name: qmp.reply
    usdt: libvirt:qemu_monitor_recv_reply
    module: libvirt_driver_qemu.so
    arguments: void *mon, const char *text
    capture: {mon: mon, text: text}
    json: text
    answers: {point: qmp.send, by: [mon, json.id]}
  - name: error
    module: libvirt.so.0
    prototype: const char *virErrorMsg(virErrorNumber code, const char *detail)
    at: return
    capture: {code: code, message: 'format(return, detail)'}
"""


def load(text: str) -> Any:
    return loads(text.encode(), "r.yaml")


def error(text: str) -> RecipeError:
    with pytest.raises(RecipeError) as caught:
        load(text)
    return caught.value


def changed(old: str, new: str) -> str:
    assert GOOD.count(old) == 1, old
    return GOOD.replace(old, new)


def test_what_a_recipe_says() -> None:
    recipe = load(GOOD)
    assert (recipe.name, recipe.about) == ("states", "What it is about.")
    assert recipe.try_ == "virsh domstate DOMAIN"
    state, method = recipe.spans
    assert (state.name, state.module, state.root) == ("virDomainGetState", "libvirt.so.0", True)
    assert state.prototype.parameters[1] == Parameter("state", "int *")
    assert state.enter["domain"] == CapturePath("domain->name", Member(Argument("domain"), "name"))
    assert state.exit["state"] == CapturePath("*state", Deref(Argument("state")))
    assert (method.name, method.root, method.optional, method.prototype) == (
        *("qemuDomainGetState", False, True),
        None,
    )
    send, reply, failed = recipe.points
    assert (send.usdt, send.json, send.answers) == ("libvirt:qemu_monitor_send_msg", "text", None)
    assert (reply.answers.point, reply.answers.by) == ("qmp.send", ("mon", "json.id"))
    message = failed.capture["message"].form
    assert isinstance(message, Format)
    assert (failed.at_return, message.filler) == (True, Argument("detail"))
    assert recipe.modules == ("libvirt.so.0", "libvirt_driver_qemu.so")
    assert recipe.filters == ("domain", "flags")
    assert recipe.raw["virtrace"] == 1
    assert recipe.raw["spans"][0]["root"] is True
    assert recipe.raw["points"][1]["answers"]["by"] == ["mon", "json.id"]


def test_every_shipped_recipe_loads_and_fits_into_a_header() -> None:
    assert "blockinfo" in catalogue.shipped()
    for name in catalogue.shipped():
        recipe = catalogue.find_recipe(name)
        assert recipe.name == name
        assert json.loads(json.dumps(recipe.raw)) == recipe.raw
        assert recipe.roots or any(point.anywhere for point in recipe.points)


def test_blockinfo_is_found_with_its_roots_and_filters() -> None:
    recipe = catalogue.find_recipe("blockinfo")
    assert [span.name for span in recipe.spans if span.root] == ["virDomainGetBlockInfo"]
    assert recipe.filters == ("domain", "disk", "flags")


# A change of GOOD, where it is refused, and what is said of it.
END = "    at: return\n    capture: {code: code, message: 'format(return, detail)'}\n"
BROKEN = [
    ("virtrace: 1", "virtrace: 2", "1:11", "version 2", "reads version 1"),
    ("virtrace: 1", "virtrac: 1", "1:1", "unknown key 'virtrac'", "'virtrace'?"),
    ("try:", "use: [qmpp]\ntry:", "5:7", "there is no fragment 'qmpp'", "use one of: client"),
    ("try:", "use: [qmp]\ntry:", "18:5", "a second probe is named 'qmp.send'", "its own name"),
    ("    root: true", "    root: true\n    role: jail", "10:11", "'jail' is not a role", "lock"),
    ("try:", "where: {disk: vda}\ntry:", "5:9", "'disk=vda' is not a filter", "domain, flags"),
    ("try:", "where: vda\ntry:", "5:8", "found 'vda'", "`key: value`"),
    ("try:", "where: {a=b: vda}\ntry:", "5:9", "found 'a=b'", "a name as C has them"),
    ("try:", "where: {domain: }\ntry:", "5:16", "found nothing", "write text"),
    ("try:", "calls: 0\ntry:", "5:8", "invalid value '0' for calls", "above 0"),
    ("try:", "calls: ''\ntry:", "5:8", "invalid value 'nothing' for calls", "above 0"),
    ("try:", "calls: 1.5\ntry:", "5:8", "invalid value '1.5' for calls", "above 0"),
    ("try:", "seconds: 1e9\ntry:", "5:10", "invalid value '1e9' for seconds", "above 0"),
    ("try:", "seconds: [1]\ntry:", "5:10", "found a list", "write text"),
    ("name: states\n", "", "1:1", "the key 'name' is missing", "`name: ...`"),
    ("    root: true", "    rot: true", "9:5", "unknown key 'rot'", "did you mean 'root'?"),
    ("    root: true", "    root: yes", "9:11", "found 'yes'", "true or false"),
    ("    root: true\n", "", "7:3", "no span is a root", "`root: true`"),
    ("    root: true", "    anywhere: true", "9:5", "unknown key 'anywhere'", "allowed here"),
    ("text: text}\n    json: text\n  - name: qmp.reply",
     "api: caller()}\n  - name: qmp.reply", "21:30", "'caller()' is not an arg", "mon, text"),
    ("enter: {domain: d", "enter: {'a b': d", "10:13", "found 'a b'", "a name as C has them"),
    ("    root: true", "    root: true\n    of: xen", "10:9", "found 'xen'", "libvirt, qemu"),
    ("    root: true", "    root: true\n    inside: {point: a, span: b}", "10:13",
     "inside one point or one span", "such as"),
    ("    root: true", "    root: true\n    inside: {point: qmp.send}", "10:13",
     "found nothing that it shares", "such as"),
    ("    root: true", "    root: true\n    inside: {span: other}", "7:5",
     "is inside 'other'", "name a"),
    ("    root: true", "    root: true\n    inside: {point: qmp.send, by: {domain: jsn.id}}", "7:5",
     "'domain' and 'jsn.id', by which", "capture them"),
    (END, "    when: {rises: code, per: code->a}\n", "33:19", "'code' is not a member", "such as"),
    (END, "    when: {rises: a->a, per: code->a}\n", "33:19", "'a->a' is not a member", "such as"),
    (END, "    when: {rises: code->a}\n", "33:11", "the key 'per' is missing", "add `per"),
    ("    at: return\n", "    at: return\n    when: {rises: code->a, per: code->a}\n", "34:11",
     "a value rises or changes at the entry", "remove it"),
    (END, "    when: {changes: other}\n", "33:21", "'other' is not an argument, or", "such as"),
    (END, "    when: {changes: caller()}\n", "33:21", "'caller()' is not an argument, or", "such"),
    (END, "    when: {changes: code, rises: code->a}\n", "33:27", "unknown key 'rises'", "allowed"),
    (END, "    when: {fails: return}\n", "33:11", "what fails is the function", "at: return"),
    ("    at: return\n", "    at: return\n    when: {fails: code}\n", "34:11",
     "what fails is the function", "write `at: return`"),
    ("    at: return\n", "    at: return\n    when: {fails: return, per: code->a}\n", "34:11",
     "what fails is the function", "write `at: return`"),
    (END, "    every: 1s\n", "33:12", "a point is met when its code runs", "remove it"),
    (END, "    when: {over: 10ms}\n", "33:11", "how long a function took", "at: return"),
    ("    at: return\n", "    at: return\n    when: {over: 1s, fails: return}\n", "34:11",
     "how long a function took", "write `at: return`"),
    ("    at: return\n", "    at: return\n    when: {over: 10}\n", "34:18",
     "'10' is no time", "such as: 10ms"),
    ("    at: return\n", "    at: return\n    when: {over: 10000ms}\n", "34:18",
     "'10000ms' is no time", "such as: 10ms"),
    ("    at: return\n", "    at: return\n    when: {over: 1s, thread: 2}\n", "34:30",
     "found another thread", "thread: main"),
    ("name: states", "name: a\nname: b", "3:1", "'name' is given twice", "remove one"),
    (": flags}\n    exit", ": flag}\n    exit", "10:42", "'flag' is not an arg", "domain,"),
    ("domain: domain->name", "domain: domain->name()", "10:21", "is not a capture", "such as"),
    ("'*state'", "'&state'", "11:35", "is not a capture", "such as"),
    ("result: return", "result: back", "11:20", "'back' is not an argument", "return"),
    ("domain: domain->name", "domain: return", "10:21", "'return' is not an arg", "domain"),
    ("function: qemuDomainGetState", "function: [a]", "12:15", "found a list", "text"),
    ("function: qemuDomainGetState\n    ", "", "12:5", "names its function once", "prototype"),
    ("    at: return", "    at: exit", "33:9", "found 'exit'", "entry or return"),
    ("by: [mon, json.id]", "by: mon", "29:36", "found 'mon'", "a list"),
    ("answers: {point: qmp.send", "answers: {point: x",
     "23:5", "not a point of this recipe", "qmp.send"),
    ("  - name: error", "  - name: qmp.send", "30:5", "a second probe is named", "its own name"),
    ("about: |\n  What it is about.", "about:", "3:7", "found nothing", "write text"),
    (": int virDomain", ": int(virDomain", "7:16", "declaration", "as C declares"),
    ("optional: true", "optional: true: 1", "14:19", "not YAML", "fix this line"),
    ("    optional: true", "    find: {driver_method: a}",
     "14:11", "`find:` needs the declaration of the function", "`prototype:`"),
    ("    at: return", "    arguments: int a", "33:16", "are in its `prototype:`", "remove"),
    ("{domain: domain->name", "{domain: backtrace(no->id)",
     "10:21", "'no' is not an argument", "domain, flags"),
    ("    optional: true", "    lines: {a: b, c: backtrace(b)}",
     "14:22", "a backtrace is not a value that a line can change", "move it to `enter:`"),
    ("by: [mon, json.id]", "by: []", "29:36", "nothing to answer by", "json.id"),
    ("by: [mon, json.id]", "by: [no]", "23:5", "'no', by which it answers, is no", "json, mon"),
    ("answers: {point: qmp.send, by: [mon", "answers: {point: error, by: [mon",
     "23:5", "not a value of 'error'", "code, message"),
]  # fmt: skip


JOB = """\
virtrace: 1
name: jobs
about: Where a job begins, by version.
try: virsh suspend DOMAIN
spans:
  - prototype: int virDomainSuspend(virDomainPtr domain)
    module: libvirt.so.0
    root: true
  - name: beginJob
    module: libvirt.so.0
    enter: {job: job}
    any_of:
      - prototype: int virDomainObjBeginJob(virDomainObj *obj, int job)
      - prototype: int qemuDomainObjBeginJob(virQEMUDriver *driver, virDomainObj *obj, int job)
        module: libvirt_driver_qemu.so
        enter: {kind: job}
points:
  - name: asked
    json: text
    capture: {text: text}
    any_of:
      - {usdt: 'libvirt:new', module: m, arguments: char *text}
      - {usdt: 'libvirt:old', module: m, arguments: 'void *mon, char *text'}
"""


def test_alternatives_of_one_name() -> None:
    recipe = load(JOB)
    root, new, old = recipe.spans
    assert (root.name, root.function) == ("virDomainSuspend", "virDomainSuspend")
    assert {span.name for span in (new, old)} == {"beginJob"}
    assert (new.function, new.module, [*new.enter]) == (
        *("virDomainObjBeginJob", "libvirt.so.0"),
        ["job"],
    )
    assert (old.function, old.module, [*old.enter]) == (
        *("qemuDomainObjBeginJob", "libvirt_driver_qemu.so"),
        ["kind"],
    )
    assert [(point.name, point.usdt, point.json) for point in recipe.points] == [
        ("asked", "libvirt:new", "text"),
        ("asked", "libvirt:old", "text"),
    ]
    assert recipe.modules == ("libvirt.so.0", "libvirt_driver_qemu.so", "m")


BROKEN_ALTERNATIVES = [
    ("  - name: beginJob\n", "  - optional: true\n", "9:5", "'name' is missing", "`name: ...`"),
    ("'libvirt:old'", "nothing", "23:16", "found 'nothing'", "provider:name"),
    ("module: m, arguments: 'v", "arguments: 'v", "23:9", "'module' is missing", "`module: ...`"),
    ("        enter: {kind: job}\n", "        root: true\n", "16:9", "unknown key 'root'", ""),
    ("        enter: {kind: job}", "        enter: {kind: jo}", "16:23", "'jo' is not an arg", ""),
    ("    enter: {job: job}", "    enter: {job: obj->x, mon: driver}", "11:31",
     "'driver' is not an arg", "job, obj"),
    ("    json: text\n", "    json: txt\n", "19:11", "'txt' is not captured", "capture:"),
    ("  - name: beginJob", "  - name: virDomainSuspend", "9:5", "a second probe", "its own name"),
    ("      - prototype: int virDomainObj", "      - function: f\n        prototype: int f",
     "13:9", "a span names its function once", "`prototype:`"),
]  # fmt: skip


@pytest.mark.parametrize(("old", "new", "where", "what", "remedy"), BROKEN_ALTERNATIVES)
def test_errors_of_alternatives(old: str, new: str, where: str, what: str, remedy: str) -> None:
    assert JOB.count(old) == 1
    caught = error(JOB.replace(old, new))
    assert caught.what.startswith(f"r.yaml:{where}: ")
    assert what in caught.what
    assert remedy in caught.remedy


@pytest.mark.parametrize(
    ("number", "what"),
    [(0, "found no alternative"), (10, None), (11, "found 11 elements")],
)
def test_how_many_alternatives(number: int, what: str | None) -> None:
    listed = "".join(f"      - function: f{n}\n" for n in range(number)) or "      []\n"
    text = JOB[: JOB.index("  - name: beginJob")] + "  - name: a\n    module: m\n    any_of:\n"
    if what is None:
        assert len(load(text + listed).spans) == 1 + number
    else:
        caught = error(text + listed)
        assert what in caught.what
        assert caught.what.startswith("r.yaml:12:7: ")


@pytest.mark.parametrize(("old", "new", "where", "what", "remedy"), BROKEN)
def test_errors_name_the_place_and_the_remedy(
    old: str, new: str, where: str, what: str, remedy: str
) -> None:
    found = error(changed(old, new))
    assert found.what.startswith(f"r.yaml:{where}: ")
    assert what in found.what
    assert remedy in found.remedy


ROOTLESS = """\
virtrace: 1
name: dispatch
about: a
try: t
points:
  - name: api.failed
    module: libvirt.so.0
    prototype: void virDispatchError(virConnectPtr conn)
    anywhere: true
    optional: true
    capture: {api: caller()}
"""


def test_a_recipe_without_calls() -> None:
    recipe = load(ROOTLESS)
    assert (recipe.spans, recipe.roots, recipe.filters) == ((), (), ())
    [point] = recipe.points
    assert (point.anywhere, point.optional) == (True, True)
    for where, calls in ((["domain=vm1"], None), ([], "3")):
        with pytest.raises(UsageError, match="the recipe dispatch traces no calls") as caught:
            selection.parse_selection(recipe, where, calls, None)
        assert "--seconds" in caught.value.remedy


@pytest.mark.parametrize(
    "change", [("    anywhere: true\n", ""), ("true\n    opt", "false\n    opt")]
)
def test_a_recipe_that_would_record_nothing(change: tuple[str, str]) -> None:
    found = error(ROOTLESS.replace(*change))
    assert found.what.startswith("r.yaml:1:1: nothing would be recorded")
    assert "`anywhere: true`" in found.remedy


@pytest.mark.parametrize("text", ["", "# nothing\n", "text", "- 1", "\0", "a: b: c", "%", "{"])
def test_what_is_no_recipe_at_all(text: str) -> None:
    assert error(text).what.startswith("r.yaml")


@pytest.mark.parametrize(
    "data", [b"\xff\xfe\xfd", b"name: \xe9", b"\x00" * 100, GOOD.encode("utf-16")]
)
def test_what_is_no_text(data: bytes) -> None:
    with pytest.raises(RecipeError):
        loads(data, "r.yaml")


class TestHostile:
    """A recipe comes with a stranger's bug report, and is read as root."""

    @pytest.mark.parametrize(
        ("old", "new"),
        [
            # GDB's linespec evaluates what stands behind an asterisk, calls included.
            ("function: qemuDomainGetState", "function: '*(int)raise(9)'"),
            ("function: qemuDomainGetState", "function: 'file.c:12'"),
            ("function: qemuDomainGetState", "function: 'f if system(\"id\")'"),
            ("function: qemuDomainGetState", "function: '-probe x'"),
            ('function: qemuDomainGetState', 'function: "f\\n!id"'),
            ('function: qemuDomainGetState', 'function: "f\\n"'),
            ("module: libvirt_driver_qemu.so\n    optional", 'module: "m\\n!id"\n    optional'),
            ("module: libvirt_driver_qemu.so\n    optional", "module: ../../x\n    optional"),
            ("module: libvirt_driver_qemu.so\n    optional", "module: ''\n    optional"),
            ("usdt: libvirt:qemu_monitor_send_msg", "usdt: 'a:b if x()'"),
            ("usdt: libvirt:qemu_monitor_send_msg", "usdt: '*'"),
            ("name: states", "name: ../../etc/cron.d/x"),
            ("name: states", "name: -x"),
            ("name: states", "name: \"a\\e[2J\""),
            ("name: qmp.reply", "name: \"a\\nb\""),
            ("domain: domain->name", "domain: 'domain->name, x()'"),
            ("domain: domain->name", "domain: '(int)domain'"),
            ("domain: domain->name", "domain: domain[0]"),
            ("domain: domain->name", "domain: $rip"),
            ("domain: domain->name", "domain: 'domain = 0'"),
        ],
    )  # fmt: skip
    def test_nothing_but_a_name_passes_for_one(self, old: str, new: str) -> None:
        assert error(changed(old, new)).what.startswith("r.yaml:")

    @pytest.mark.parametrize(
        "value",
        [
            "!!python/object/apply:os.system ['true']",
            "!!python/name:os.system ''",
            "!!python/object:x y",
            "!!binary aGk=",
            "!!set {a}",
            "!unknown x",
            "!!int x",
            "2026-11-22",
            "9" * 1900,
            ".nan",
            "0x10",
            "1_000",
            "1:30:00",
        ],
    )
    def test_a_scalar_is_text_or_is_refused(self, value: str) -> None:
        """Never an object, and never what JSON cannot say."""
        text = changed("try: virsh domstate DOMAIN", f"try: {value}")
        try:
            recipe = load(text)
        except RecipeError:
            return
        assert isinstance(recipe.raw["try"], str)
        assert json.loads(json.dumps(recipe.raw)) == recipe.raw

    def test_aliases_do_not_multiply(self) -> None:
        keys = ", ".join(f"k{i}: a" for i in range(1000))
        spans = "".join(f"- {{function: f{i}, module: m, enter: *e}}\n" for i in range(1000))
        bomb = "virtrace: 1\nname: n\nabout: a\ntry: t\nspans:\n"
        bomb += f"- {{function: f, module: m, root: true, enter: &e {{{keys}}}}}\n{spans}"
        found = error(bomb)
        assert found.what.startswith("r.yaml:7:")
        assert "aliases" in found.what

    def test_nested_aliases_do_not_multiply(self) -> None:
        lines = ["a0: &a0 [x, x]", *(f"a{i}: &a{i} [*a{i - 1}, *a{i - 1}]" for i in range(1, 60))]
        assert error("\n".join(lines)).what.startswith("r.yaml:")

    @pytest.mark.parametrize("opening", ["[", "{a: ", "- "])
    def test_deep_nesting_is_refused(self, opening: str) -> None:
        assert error(opening * 20_000).what.startswith("r.yaml")

    @pytest.mark.parametrize(
        ("old", "new"),
        [
            ("prototype: int virDomainGetState(", "prototype: {}("),
            ("arguments: void *mon, const char *text\n    capture: {mon: mon, text: text}\n"
             "    json: text\n  - name: qmp.reply", "arguments: {}\n  - name: qmp.reply"),
            ("domain: domain->name", "domain: {}->"),
        ],
    )  # fmt: skip
    def test_long_text_is_refused_before_it_is_matched(self, old: str, new: str) -> None:
        assert error(changed(old, new.format("a" * 50_000))).what.startswith("r.yaml:")

    def test_10_mib_are_not_read(self, tmp_path: Path) -> None:
        file = tmp_path / "big.yaml"
        with file.open("wb") as stream:
            stream.write(GOOD.encode())
            stream.truncate(10 << 20)
        with pytest.raises(RecipeError, match=r"big.yaml is larger than \d+ KiB"):
            loader.load_recipe(file)

    def test_only_a_regular_file_is_read(self, tmp_path: Path) -> None:
        fifo = tmp_path / "fifo.yaml"
        os.mkfifo(fifo)
        for name in (fifo, tmp_path, Path("/dev/zero")):
            with pytest.raises(RecipeError, match="is not a regular file"):
                loader.load_recipe(name)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"cannot read the recipe .*: No such file"):
        catalogue.find_recipe(str(tmp_path / "none.yaml"))


@pytest.mark.parametrize(
    ("name", "hint"),
    [("blokinfo", "did you mean 'blockinfo'? "), ("zzz", "shipped recipes: ")],
)
def test_a_name_that_is_not_shipped(name: str, hint: str) -> None:
    with pytest.raises(RecipeError) as caught:
        catalogue.find_recipe(name)
    assert caught.value.what == f"there is no recipe {name!r}"
    assert caught.value.remedy.startswith(hint)
    assert "blockinfo" in caught.value.remedy


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("disk", Argument("disk")),
        ("return", Returned()),
        ("a->b->c", Member(Member(Argument("a"), "b"), "c")),
        ("a.b->c", Member(Member(Argument("a"), "b"), "c")),
        ("**retstats", Deref(Deref(Argument("retstats")))),
        ("*a->b", Deref(Member(Argument("a"), "b"))),
        ("format(return, info)", Format(Returned(), Argument("info"))),
        ("typed(ps, n)", TypedParams(Argument("ps"), Argument("n"))),
        ("records(rs, n)", Records(Argument("rs"), Argument("n"))),
        ("array(a, n)", Elements(Deref(Argument("a")), Argument("n"))),
        (
            "typed(return->ps, return->a.n)",
            TypedParams(Member(Returned(), "ps"), Member(Member(Returned(), "a"), "n")),
        ),
        ("caller()", Caller()),
        (
            "backtrace( job->a.owner )",
            Backtrace(Member(Member(Argument("job"), "a"), "owner")),
        ),
        ("***a", Deref(Deref(Deref(Argument("a"))))),
    ],
)
def test_capture_paths(text: str, expected: Form) -> None:
    assert path.parse_path(f" {text} ") == CapturePath(text, expected)


@pytest.mark.parametrize(
    "text",
    ["", "*", "1a", "a->", "a b", "a->b()", "&a", "a[0]", "a+1", "(a)", "a; b", "$sp", "format(a)",
     "format(a, b, c)", "format(*a, b)", "a->*b", "a\n->b!", "typed(a)", "typed(*a, b)",
     "typed(a->b, *n)", "format(a->b, c)",
     "backtrace()", "backtrace(*a)", "backtrace(a, b)", "*backtrace(a)", "backtrace(a)->b",
     "caller(a)", "caller() ()", "other(a, b)", "****a", "a" + "->b" * 16, "é"],
)  # fmt: skip
def test_what_is_no_capture_path(text: str) -> None:
    with pytest.raises(ValueError, match="is not a capture"):
        path.parse_path(text)


@pytest.mark.parametrize(
    ("text", "name", "returns", "parameters"),
    [
        ("int f(void)", "f", "int", []),
        ("int f()", "f", "int", []),
        ("void f(int a);", "f", "void", [("a", "int")]),
        ("const char *f(const char *a, ...)", "f", "char *", [("a", "char *")]),
        ("virDomainPtr f(virDomainPtr a)", "f", "virDomain *", [("a", "virDomain *")]),
        ("int f(struct s **a, enum e b)", "f", "int", [("a", "s **"), ("b", "e")]),
        ("unsigned  long\nlong f(char*a)", "f", "unsigned long long", [("a", "char *")]),
    ],
)
def test_declarations(
    text: str, name: str, returns: str, parameters: list[tuple[str, str]]
) -> None:
    found = prototype.parse_prototype(text)
    assert (found.name, found.returns) == (name, returns)
    assert [(one.name, one.type) for one in found.parameters] == parameters


@pytest.mark.parametrize(
    "text",
    [
        "",
        "int f",
        "foo(int a)",
        "int f(int)",
        "int f(int a",
        "int f(char *)",
        "int f(int a, , int b)",
        "int f(int a[2])",
        "int f(int (*a)(void))",
        "int (*f)(int a)",
        "int f(int a, int a)",
        "int f(..., int a)",
    ],
)
def test_what_is_no_declaration(text: str) -> None:
    with pytest.raises(ValueError, match=r"is not|twice"):
        prototype.parse_prototype(text)


_NUMBER = "give a number above 0, below 1,000,000,000"
_WHOLE_NUMBER = "give a whole number above 0, below 1,000,000,000,000,000"


class TestSelection:
    def test_what_a_trace_may_cost(self) -> None:
        assert selection.limits({}) == selection.Limits()
        given = {
            "max-stop-ms": "0.5",
            "max-load": "7",
            "max-events": "1000000000",
            "max-bytes": "5000000000",
        }
        assert selection.limits(given) == selection.Limits(0.5, 7, 1_000_000_000, 5_000_000_000)

    @pytest.mark.parametrize(
        ("given", "what", "remedy"),
        [
            ({"max-stop-ms": "0"}, "invalid value '0' for max-stop-ms", _NUMBER),
            ({"max-stop-ms": "1e9"}, "invalid value '1e9' for max-stop-ms", _NUMBER),
            ({"max-events": "1.5"}, "invalid value '1.5' for max-events", _WHOLE_NUMBER),
            (
                {"max-events": f"{10**15}"},
                f"invalid value '{10**15}' for max-events",
                _WHOLE_NUMBER,
            ),
            ({"max-bytes": "1GB"}, "invalid value '1GB' for max-bytes", _WHOLE_NUMBER),
            (
                {"max-load": "101"},
                "max-load must be at most 100 (percent)",
                "give a smaller max-load",
            ),
        ],
    )
    def test_costs_that_cannot_be_meant(
        self, given: dict[str, str], what: str, remedy: str
    ) -> None:
        with pytest.raises(UsageError) as caught:
            selection.limits(given)
        assert (caught.value.what, caught.value.remedy) == (what, remedy)

    def test_files_of_a_long_recording(self) -> None:
        assert selection.rotation(None, "") is None
        assert selection.rotation("100000", None) == (100_000, None)
        assert selection.rotation("5000000000", "3") == (5_000_000_000, 3)
        for rotate, keep in (("1GB", ""), ("0", ""), ("9", "0"), ("9", "x"), (None, "3")):
            with pytest.raises(UsageError):
                selection.rotation(rotate, keep)

    def test_what_is_asked_for(self) -> None:
        recipe = load(GOOD)
        found = selection.parse_selection(recipe, ["domain=vm1=x", "flags=0"], "3", "0.5")
        assert found.where == {"domain": "vm1=x", "flags": "0"}
        assert (found.calls, found.seconds) == (3, 0.5)
        assert selection.parse_selection(recipe, [], None, "") == selection.Selection()

    def test_what_the_recipe_says_holds_where_the_user_does_not(self) -> None:
        defaults = "where: {domain: vm1, flags: 0}\ncalls: 5\nseconds: 1.5\ntry:"
        recipe = load(changed("try:", defaults))
        found = selection.parse_selection(recipe, [], None, "")
        assert found == selection.Selection({"domain": "vm1", "flags": "0"}, 5, 1.5)
        found = selection.parse_selection(recipe, ["domain=vm2"], "3", "9")
        assert found == selection.Selection({"domain": "vm2", "flags": "0"}, 3, 9.0)
        assert selection.filters(recipe, ["flags=1"]) == {"flags": "1"}
        assert (recipe.raw["calls"], recipe.raw["seconds"]) == (5, 1.5)
        again = load(json.dumps(recipe.raw))
        assert (again.where, again.calls, again.seconds) == (
            {"domain": "vm1", "flags": "0"},
            5,
            1.5,
        )

    @pytest.mark.parametrize("limit", ["calls: 1", "where: {a: b}"])
    def test_without_calls_there_is_none_to_choose_or_to_count(self, limit: str) -> None:
        assert "traces no calls" in error(ROOTLESS + limit + "\n").what

    @pytest.mark.parametrize("where", ["domain", "=x", "disk=vda", "result=0", ""])
    def test_no_filter(self, where: str) -> None:
        with pytest.raises(UsageError) as caught:
            selection.parse_selection(load(GOOD), [where], None, None)
        assert "domain, flags" in caught.value.remedy

    def test_no_name(self) -> None:
        with pytest.raises(UsageError, match="an incomplete character"):
            selection.parse_selection(load(GOOD), ["domain=\ud800"], None, None)

    def test_a_name_is_utf_8_whatever_the_locale_is(self) -> None:
        for given, name in (("é", "é"), ("\udcc3\udca9", "é"), ("\udce9", "\udce9")):
            assert selection.filters(load(GOOD), [f"domain={given}"]) == {"domain": name}

    @pytest.mark.parametrize("text", ["0", "-1", "x", "nan", "inf", "1e99", "1.5", " "])
    def test_no_number_of_calls(self, text: str) -> None:
        with pytest.raises(UsageError, match=r"^invalid value .* for calls$"):
            selection.parse_selection(load(GOOD), [], text, None)

    @pytest.mark.parametrize("text", ["0", "-1", "x", "nan", "inf", "1e99"])
    def test_no_number_of_seconds(self, text: str) -> None:
        with pytest.raises(UsageError, match=r"^invalid value .* for seconds$"):
            selection.parse_selection(load(GOOD), [], None, text)


def test_fragments_become_points() -> None:
    text = "virtrace: 1\nname: n\nabout: a\ntry: t\nuse_anywhere: [qmp]\n"
    recipe = loads(text.encode(), "r.yaml")
    sent, reply = recipe.raw["points"]
    assert (sent["name"], sent["anywhere"]) == ("qmp.send", True)
    # A reply is recorded with its command.
    assert (reply["name"], "anywhere" in reply) == ("qmp.reply", False)
    assert "use_anywhere" not in recipe.raw
    assert [(point.role, point.anywhere) for point in recipe.points] == [
        *(("qmp.command", True), ("qmp.reply", False))
    ]
    for again in (loads(dumps(recipe.raw), "again.yaml"), from_document(recipe.raw, "again")):
        assert (again.points, again.raw) == (recipe.points, recipe.raw)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"name": None}, "the trace: found nothing"),
        ({"virtrace": 2}, "the trace: this is a recipe of version 2"),
        ({"spans": "x"}, "the trace: found 'x'"),
        ({"points": [{"deep": json.loads(500 * "[" + 500 * "]")}]},
         "the trace: the recipe is nested too deep"),
    ],
    ids=["null", "version", "text", "deep"],
)  # fmt: skip
def test_the_recipe_of_a_trace_is_checked(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(RecipeError) as raised:
        from_document({**catalogue.find_recipe("blockinfo").raw, **changes}, "the trace")
    assert raised.value.what == said


@pytest.mark.parametrize("name", fragments())
def test_every_fragment_is_used(name: str) -> None:
    texts = [catalogue.file_of(recipe).read_text() for recipe in catalogue.shipped()]
    named = [yaml.safe_load(text) for text in texts]
    assert any(name in [*one.get("use", []), *one.get("use_anywhere", [])] for one in named)


def test_a_role_is_given_or_implied() -> None:
    given = changed("  - name: error", "  - name: error\n    role: error.place")
    for text, role in ((GOOD, "error"), (given, "error.place")):
        [error] = [one for one in loads(text.encode(), "r").points if one.name == "error"]
        assert error.role == role
    pair = GOOD.replace("qmp.send", "ask").replace("qmp.reply", "told")
    assert [point.role for point in loads(pair.encode(), "r").points][:2] == ["request", "reply"]
