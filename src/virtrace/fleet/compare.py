"""Compare what many files say: groups, those that differ from the others, spreads of numbers."""

from __future__ import annotations

import statistics
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from virtrace.fleet.facts import ANSWER, DOCTOR, PART, SHAPE, VALUES, VERDICT
from virtrace.fleet.read import Read, common_folder

# A value differs from the others if at most this share of the files have it, or, among at least so
# many, a single one.
RARE, _FEW = 0.1, 3
# In this order; then versions, recipes and the rest by name, and QEMU's answers last.
_FIRST = (VERDICT, ANSWER, VALUES, DOCTOR)


@dataclass(frozen=True)
class Group:
    """The files that have one value of a trait. says: a sentence of the first of them."""

    value: str
    files: tuple[str, ...]
    says: str | None = None


@dataclass(frozen=True)
class Difference:
    """What some files have and most have not.

    usual: the value that most files have; None if it is this one.
    says: a sentence of the first of the files.
    """

    trait: str
    value: str
    usual: str | None
    says: str | None = None


@dataclass(frozen=True)
class Odd:
    """Files that differ from the others in the same.

    also: what all of them have, and most others have not; the number of the others that have it.
    """

    files: tuple[str, ...]
    differs: tuple[Difference, ...]
    also: tuple[tuple[Difference, int], ...]


@dataclass(frozen=True)
class Spread:
    """How the numbers of one name are spread. unit: ``bytes``, ``ns`` or empty.

    least_in, most_in: the files with the least and the greatest.
    """

    name: str
    unit: str
    count: int
    least: int
    median: int
    most: int
    least_in: str
    most_in: str


@dataclass
class Fleet:
    """What many files say.

    kinds: number of files by kind. traits: groups by trait, of a few files first.
    odd: files that differ, fewest first. silent: files that answer nothing, and why.
    incomplete: files of which something is missing, and what. left_out: files that were not read.
    """

    kinds: dict[str, int] = field(default_factory=dict)
    traits: dict[str, list[Group]] = field(default_factory=dict)
    odd: list[Odd] = field(default_factory=list)
    spreads: list[Spread] = field(default_factory=list)
    silent: list[tuple[str, str]] = field(default_factory=list)
    incomplete: list[tuple[str, str]] = field(default_factory=list)
    left_out: list[tuple[str, str]] = field(default_factory=list)


@dataclass
class _Numbers:
    unit: str
    values: list[int] = field(default_factory=list)
    least: tuple[int, str] | None = None
    most: tuple[int, str] | None = None

    def add(self, values: Sequence[int], name: str) -> None:
        self.values += values
        least, most = (min(values), name), (max(values), name)
        if self.least is None or least[0] < self.least[0]:
            self.least = least
        if self.most is None or most[0] > self.most[0]:
            self.most = most


class Comparer:
    """Takes files one by one, and compares them. paths: of all that will be taken."""

    def __init__(self, paths: Iterable[str]) -> None:
        self._prefix = common_folder(paths)
        self._fleet = Fleet()
        # By trait and value: the files that have it.
        self._having: dict[str, dict[str, list[str]]] = {}
        self._with_trait: dict[str, int] = {}
        self._says: dict[str, str] = {}
        self._numbers: dict[str, _Numbers] = {}

    def take(self, read: Read) -> None:
        fleet, name = self._fleet, read.path[len(self._prefix) :]
        facts = read.facts
        if facts is None:
            fleet.left_out.append((name, read.why or ""))
            return
        fleet.kinds[facts["kind"]] = fleet.kinds.get(facts["kind"], 0) + 1
        for trait, values in facts["traits"].items():
            self._with_trait[trait] = self._with_trait.get(trait, 0) + 1
            for value in dict.fromkeys(values):
                self._having.setdefault(trait, {}).setdefault(value, []).append(name)
        for value, sentence in facts["says"].items():
            self._says.setdefault(value, sentence)
        for number, record in facts["numbers"].items():
            if record["values"]:
                found = self._numbers.setdefault(number, _Numbers(record["unit"]))
                found.add(record["values"], name)
        if facts["nothing"] is not None:
            fleet.silent.append((name, facts["nothing"]))
        if facts["problems"]:
            fleet.incomplete.append((name, "; ".join(facts["problems"])))

    def compared(self) -> Fleet:
        """Return the comparison of all that was taken."""
        fleet = self._fleet
        for trait in sorted(self._having, key=_rank):
            groups = [
                Group(value, tuple(files), self._says.get(value))
                for value, files in self._having[trait].items()
            ]
            fleet.traits[trait] = sorted(groups, key=lambda group: len(group.files))
        fleet.odd = self._odd()
        fleet.spreads = [
            Spread(
                name,
                each.unit,
                len(each.values),
                least=each.least[0],
                median=statistics.median_low(each.values),
                most=each.most[0],
                least_in=each.least[1],
                most_in=each.most[1],
            )
            for name, each in sorted(self._numbers.items())
            if each.least is not None and each.most is not None
        ]
        return fleet

    def _odd(self) -> list[Odd]:
        rare: dict[str, list[Difference]] = {}
        for trait, groups in self._fleet.traits.items():
            total = self._with_trait[trait]
            for group in groups:
                if _is_rare(len(group.files), total):
                    difference = self._difference(trait, group)
                    for file in group.files:
                        rare.setdefault(file, []).append(difference)
        alike: dict[tuple[Difference, ...], list[str]] = {}
        for file, differences in rare.items():
            alike.setdefault(tuple(differences), []).append(file)
        odd = [
            Odd(tuple(files), differences, tuple(self._also(files, differences)))
            for differences, files in alike.items()
        ]
        return sorted(odd, key=lambda each: (len(each.files), each.files))

    def _difference(self, trait: str, group: Group) -> Difference:
        most = self._fleet.traits[trait][-1]
        usual = None if most.value == group.value else most.value
        return Difference(trait, group.value, usual, group.says)

    def _also(
        self, files: Sequence[str], differences: Sequence[Difference]
    ) -> Iterable[tuple[Difference, int]]:
        """Yield what all of the files have, and fewer than half of the others."""
        told = {(each.trait, each.value) for each in differences}
        for trait, groups in self._fleet.traits.items():
            # The last one is what most have.
            for group in groups[:-1]:
                others = len(group.files) - len(files)
                is_told = (trait, group.value) in told
                is_of_all = others >= 0 and set(files) <= set(group.files)
                if (
                    not is_told
                    and is_of_all
                    and others < (self._with_trait[trait] - len(files)) / 2
                ):
                    yield self._difference(trait, group), others


def _is_rare(files: int, total: int) -> bool:
    return files <= total * RARE or (files == 1 and total >= _FEW)


def _rank(trait: str) -> tuple[int, str]:
    if trait in _FIRST:
        return _FIRST.index(trait), trait
    return len(_FIRST) + trait.startswith(SHAPE), trait


def parts(value: str, usual: str) -> tuple[list[str], list[str]]:
    """Return what an answer of QEMU lacks, and what it has besides, beside the usual one."""
    own, others = set(value.split(PART)), set(usual.split(PART))
    return _outermost(others - own), _outermost(own - others)


def _outermost(members: Collection[str]) -> list[str]:
    """Leave out what is inside of another one."""
    return sorted(each for each in members if each.rpartition(".")[0] not in members)


def counted(kinds: Mapping[str, int]) -> str:
    """Return the number of files of each kind: `12 traces, 1 snapshot`."""
    names = {"doctor": "report of doctor"}
    plural = {"doctor": "reports of doctor"}
    return ", ".join(
        f"{number:,} {names.get(kind, kind) if number == 1 else plural.get(kind, f'{kind}s')}"
        for kind, number in sorted(kinds.items(), key=lambda item: -item[1])
    )
