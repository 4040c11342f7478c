"""Breakpoints, displays and commands as GDB writes them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from virtrace.inferior import handmade
from virtrace.recipe import draft, loader, path
from virtrace.recipe.draft import Draft

# As `save breakpoints` of GDB 13.1 writes it, and, of the dprintf, that of 18.1.
SAVED = r"""break virDomainGetBlockInfo
  condition $bpnum flags == 0
  ignore $bpnum 2
break qemuDomainBlocksStatsGather
  commands
    silent
    print/x -pretty on -- *retstats
    printf "%s, %d\n", path, (int) capacity
    backtrace 1
    continue
  end
break qemu_driver.c:10909 thread 3
disable $bpnum
tbreak -function virDomainGetInfo
hbreak *0x7f82f9af59c0
with breakpoint pending on -- dprintf /src/qemu_driver.c:17,"d, %s \"%u\\n", path, f(a, "b,c")
watch -location *(int*)0x7ffff7ff0000
"""


def test_what_gdb_saves() -> None:
    found = handmade.breakpoints(SAVED)
    assert [made.location for made in found] == [
        "virDomainGetBlockInfo",
        "qemuDomainBlocksStatsGather",
        "qemu_driver.c:10909",
        "-function virDomainGetInfo",
        "*0x7f82f9af59c0",
        "/src/qemu_driver.c:17",
        None,
    ]
    functions = [made.function for made in found]
    assert functions == [
        found[0].location,
        found[1].location,
        None,
        "virDomainGetInfo",
        *[None] * 3,
    ]
    assert (found[0].condition, found[0].ignored) == ("flags == 0", 2)
    assert found[1].shown == ["*retstats", "path", "(int) capacity"]
    assert found[1].others == ["backtrace 1"]
    assert [made.enabled for made in found] == [True, True, False, True, True, True, True]
    assert found[2].others == ["it is of thread 3 only"]
    assert found[5].shown == ["path", 'f(a, "b,c")']
    assert found[6].made == "watch -location *(int*)0x7ffff7ff0000"


def test_displays() -> None:
    info = """Auto-display expressions now in effect:
Num Enb Expression
1:   y  *info
2:   n  flags
13:   y  /x entry->physical (cannot be evaluated in the current context)
"""
    assert handmade.displays(info) == {"*info": True, "flags": False, "entry->physical": True}
    assert handmade.displays("There are no auto-display expressions now.\n") == {}


def test_commands_that_display() -> None:
    commands = ("display/x *info", "disp flags", "display", "print flags", "disable 1")
    assert [handmade.displayed(one) for one in commands] == ["*info", "flags", None, None, None]


@pytest.mark.parametrize(
    ("command", "expressions"),
    [
        ("p info->allocation", ["info->allocation"]),
        ("p", []),
        ("p/x $rax", ["$rax"]),
        ("output stats", ["stats"]),
        ("printf \"%d %s\", a[1,2], ','", ["a[1,2]", "','"]),
        ("next", None),
        ("ptype info", None),
        ("call f()", None),
    ],
)
def test_commands_that_print(command: str, expressions: list[str] | None) -> None:
    assert handmade.printed(command) == expressions


@pytest.mark.parametrize(
    ("condition", "wanted"),
    [
        ("flags == 0x10", {"flags": 16}),
        ('$_streq(disk, "vda")', {"disk": "vda"}),
        ('strcmp (domain->name, "vm1") == 0 && flags==0', {"domain->name": "vm1", "flags": 0}),
        ('!strcmp(disk,"")', {"disk": ""}),
        ("flags > 1", None),
        ("flags == -1", None),
        ("flags == 010", None),
        ("flags == 0 || flags == 1", None),
        ("flags", None),
    ],
)
def test_conditions_that_a_filter_can_say(
    condition: str, wanted: dict[str, str | int] | None
) -> None:
    assert handmade.filters_of(condition) == wanted


@given(
    st.lists(st.text(max_size=400), max_size=5), st.text(st.characters(codec="utf-8"), max_size=200)
)
def test_a_draft_is_read_whatever_was_typed(comments: list[str], wanted: str) -> None:
    captures: dict[str, str] = {}
    for path_text in ("a", "*a", "b->a", "c->a", "a", "null", "true"):
        draft.add(captures, path.parse_path(path_text))
    span = Draft("f", "m.so", root=True, enter=captures, lines={}, comments=comments)
    where = {"a": wanted}
    text = draft.recipe_text("r", "about", "try", [span.item()], where=where, left_out=comments)
    recipe = loader.loads(text.encode(), "r")
    assert {name: one.text for name, one in recipe.spans[0].enter.items()} == captures
    assert recipe.where == where
    assert sorted(captures.values()) == ["*a", "a", "b->a", "c->a", "null", "true"]
    assert text.count("# ") >= 2 * sum(not comment.isspace() for comment in comments if comment)
