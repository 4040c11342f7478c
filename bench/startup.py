"""How long it takes to begin: `virtrace --help`, and `show` of a small trace.

Processor time, the shortest of several rounds, beside that of a Python that does nothing.
"""

from __future__ import annotations

import resource
import subprocess
import sys

from bench.results import REPOSITORY, save

TRACE = REPOSITORY / "tests" / "data" / "explain" / "restarted-9.0.0.jsonl"
ROUNDS = 15
COMMANDS = {
    "python -c pass": ["-c", "pass"],
    "virtrace --help": ["-m", "virtrace.cli.main", "--help"],
    "virtrace show": ["-m", "virtrace.cli.main", "show", str(TRACE)],
    "virtrace explain": ["-m", "virtrace.cli.main", "explain", str(TRACE)],
}


def cpu_ms(words: list[str]) -> float:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, *words], stdout=subprocess.DEVNULL, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return 1000 * (after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)


def main() -> int:
    # In turn, so that what else the machine does falls on all of them.
    rounds = [[cpu_ms(words) for words in COMMANDS.values()] for _ in range(ROUNDS)]
    shortest = dict(zip(COMMANDS, map(min, zip(*rounds))))
    floor = shortest["python -c pass"]
    figures = {
        name: {"cpu_ms": round(ms), "ratio_to_python": round(ms / floor, 1)}
        for name, ms in shortest.items()
    }
    save("startup", figures)
    for name, each in figures.items():
        print(f"{name:<18} {each['cpu_ms']:>4} ms  {each['ratio_to_python']:>5} x")
    return 0


if __name__ == "__main__":
    sys.exit(main())
