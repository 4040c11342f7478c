"""Numbers in readable units; the output always contains the exact numbers too."""

from __future__ import annotations

from datetime import datetime, timezone

_BYTES = frozenset(
    {"capacity", "allocation", "available", "physical", "wr_highest_offset", "write_threshold"}
)
_KIB = frozenset({"maxMem", "memory"})
_BYTES_ENDING = "_bytes"
_NS_ENDINGS = ("_times", "cpuTime")

_BINARY = ("KiB", "MiB", "GiB", "TiB", "PiB", "EiB")
_NS_PER_SECOND = 1_000_000_000
_UNITS = ((1_000, "us"), (1_000_000, "ms"), (_NS_PER_SECOND, "s"))


def humanized(field: str, value: int) -> str | None:
    """Return ``value`` in the unit that its C field implies; None for a plain number."""
    if field in _BYTES or field.endswith(_BYTES_ENDING):
        return binary(value)
    if field in _KIB:
        return binary(value << 10)
    if field.endswith(_NS_ENDINGS) and value:
        return duration(value)
    return None


def quantity(field: str, value: int) -> str:
    """Return the value, and in brackets its readable form: ``2147483648 (2.000 GiB)``, ``712``."""
    read = humanized(field, value)
    return f"{value} ({read})" if read else str(value)


def binary(value: int) -> str | None:
    """Return bytes as ``virsh --human`` writes them; None if the plain number is clearer."""
    if not 1024 <= value < 1 << 64:
        return None
    power = min((value.bit_length() - 1) // 10, len(_BINARY))
    # Rounding may lead to the next unit: 1024.000 KiB is 1.000 MiB.
    if round(value / 1024**power, 3) >= 1024 and power < len(_BINARY):
        power += 1
    return f"{value / 1024**power:.3f} {_BINARY[power - 1]}"


def duration(ns: int) -> str:
    """Return nanoseconds with two or three digits: ``850 ns``, ``3.2 ms``, ``2 min 5 s``."""
    if ns < 1000:
        return f"{ns} ns"
    if ns >= 60 * _NS_PER_SECOND:
        minutes, seconds = divmod(ns // _NS_PER_SECOND, 60)
        return f"{minutes} min {seconds} s"
    unit, name = next((unit, name) for unit, name in _UNITS if ns < 999.5 * unit)
    value = ns / unit
    return f"{value:.1f} {name}" if value < 99.95 else f"{value:.0f} {name}"


def seconds(ns: int) -> str:
    """Return a time in seconds, exact to the millisecond: ``12.345 s``."""
    whole, rest = divmod(ns, _NS_PER_SECOND)
    return f"{whole}.{rest // 1_000_000:03} s"


def clock(ms: int) -> str:
    """Return a time of day, from milliseconds since the epoch: ``13:05:09.123 UTC``."""
    moment = datetime.fromtimestamp(ms // 1000, timezone.utc)
    return f"{moment:%H:%M:%S}.{ms % 1000:03} UTC"
