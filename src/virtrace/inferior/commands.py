"""The ``virtrace`` command of GDB, and its parameters.

    set virtrace output FILE          where the trace goes
    set virtrace where KEY=VALUE ...  only calls with these values
    set virtrace calls N              end after N calls
    set virtrace seconds S            end after S seconds
    set virtrace source FOLDER        where libvirt's source is, for the text of its lines
    virtrace start RECIPE             trace until Ctrl-C, or until one of these ends it
    virtrace check RECIPE             say what each probe would resolve to
    virtrace explain [FILE]           say where the numbers of a trace came from

Each parameter begins with the value of its environment variable: VIRTRACE_OUTPUT and so on.
"""

from __future__ import annotations

import json
import os
import shlex
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import gdb

from virtrace.analysis.explain import explain_trace
from virtrace.binary import x86_64
from virtrace.binary.abi import Abi
from virtrace.binary.pack import Pack
from virtrace.binary.pack import find as find_pack
from virtrace.binary.process import Process, check_traceable, inspect, require_libvirt
from virtrace.binary.source import Sources
from virtrace.errors import DONE, INTERRUPTED, NOT_TRACED, TargetError, UsageError, VirtraceError
from virtrace.inferior import target
from virtrace.inferior.infer import infer
from virtrace.inferior.notes import Notebook
from virtrace.inferior.resolve import require_traceable, resolve
from virtrace.inferior.session import Session, header_record
from virtrace.inferior.terminal import TerminalView, terminal_without_gdb
from virtrace.recipe import catalogue, selection
from virtrace.recipe.model import Recipe
from virtrace.report import explanation
from virtrace.report.highlight import style_for
from virtrace.trace.reader import read_trace
from virtrace.trace.writer import Writer, default_path

_PARAMETERS = {
    "output": "File that the trace is written to; it must not exist.",
    "where": "Trace only calls with these values: KEY=VALUE ..., quoted as in a shell.",
    "calls": "End the trace after this many calls.",
    "seconds": "End the trace after this many seconds.",
    "source": "Folders of libvirt's source, for the text of the lines, with : between them.",
}


# The traces that this GDB wrote.
_written: list[Path] = []


class _Parameter(gdb.Parameter):
    def __init__(self, name: str, doc: str) -> None:
        self.__doc__ = self.set_doc = self.show_doc = doc
        super().__init__(f"virtrace {name}", gdb.COMMAND_DATA, gdb.PARAM_STRING_NOESCAPE)
        self.value = os.environ.get(f"VIRTRACE_{name.upper()}", "")

    def get_set_string(self) -> str:
        return ""

    def get_show_string(self, value: str) -> str:
        return value or "(not set)"


class _Start(gdb.Command):
    """virtrace start RECIPE: trace the process that GDB is attached to, then detach.

    RECIPE is the name of a shipped recipe, or a file. Ctrl-C ends the trace.
    """

    def __init__(self) -> None:
        super().__init__("virtrace start", gdb.COMMAND_RUNNING)

    def invoke(self, argument: str, from_tty: bool) -> None:
        run(argument.strip())


class _Check(gdb.Command):
    """virtrace check RECIPE: say what each probe would resolve to, as the header of a trace.

    Of the process in the environment (VIRTRACE_PID), which is not touched, or of the one that
    GDB is attached to, and lets go.
    """

    def __init__(self) -> None:
        super().__init__("virtrace check", gdb.COMMAND_STATUS)

    def invoke(self, argument: str, from_tty: bool) -> None:
        _finish(lambda: _check(argument.strip()))


class _Save(gdb.Command):
    """virtrace save FILE: write what you look at by hand as a recipe.

    FILE must not exist; a recipe's name ends in .yaml. It gets the functions at your breakpoints,
    and what `display`, `dprintf`, `commands` and each `print` of this session show. What a recipe
    cannot say stands in it as a comment. Save before `detach`; then `virtrace start FILE`.
    """

    def __init__(self, notebook: Notebook) -> None:
        super().__init__("virtrace save", gdb.COMMAND_BREAKPOINTS, gdb.COMPLETE_FILENAME)
        self._notebook = notebook

    def invoke(self, argument: str, from_tty: bool) -> None:
        _finish(lambda: self._save(argument.strip()))

    def _save(self, file: str) -> int:
        if not file.endswith(".yaml"):
            raise UsageError("which file?", "a name that ends in .yaml: virtrace save mine.yaml")
        print(f"saved    {file}: {self._notebook.save(Path(file))}")
        print(f"next     virtrace start {file}")
        return DONE


class _Explain(gdb.Command):
    """virtrace explain [FILE]: say where each number of a trace came from, and why it surprises.

    FILE is a trace; the last one that this GDB wrote is the default.
    """

    def __init__(self) -> None:
        super().__init__("virtrace explain", gdb.COMMAND_STATUS)

    def invoke(self, argument: str, from_tty: bool) -> None:
        _finish(lambda: _explain(argument.strip()))


def register() -> None:
    """Make the commands known to GDB; a second time changes nothing."""
    try:
        gdb.parameter("virtrace output")
    except RuntimeError:
        for prefix in ("set virtrace", "show virtrace", "virtrace"):
            gdb.Command(prefix, gdb.COMMAND_DATA, prefix=True)
        for name, doc in _PARAMETERS.items():
            _Parameter(name, doc)
        _Start()
        _Check()
        _Explain()
        _Save(Notebook())


def run(recipe: str) -> None:
    """Trace by the recipe. In a batch GDB this also ends GDB, with virtrace's exit status."""

    def trace() -> int:
        try:
            return _trace(recipe)
        finally:
            target.detach()

    _finish(trace)


def _finish(work: Callable[[], int]) -> None:
    try:
        status = work()
    except VirtraceError as error:
        if os.environ.get("VIRTRACE_DEBUG") == "1":
            raise
        print("\n".join(error.lines()), file=sys.__stderr__, flush=True)
        status = error.exit_status
    except KeyboardInterrupt:
        status = INTERRUPTED
    except Exception as error:
        if os.environ.get("VIRTRACE_DEBUG") == "1":
            raise
        print(
            f"virtrace: an error of its own: {type(error).__name__}: {error}\n"
            "try: VIRTRACE_DEBUG=1 shows where; please report it",
            file=sys.__stderr__,
            flush=True,
        )
        status = NOT_TRACED
    if _batch():
        # Not `quit`: what is still posted to its event loop makes GDB crash at exit, when its
        # Python has gone. Nothing is attached any more, and nothing else is left to do.
        gdb.flush()
        os._exit(status)


def _trace(name: str) -> int:
    if not name:
        raise UsageError("which recipe?", f"virtrace start {catalogue.shipped()[0]}")
    recipe = catalogue.find(name)
    chosen = selection.parse(
        recipe, shlex.split(_parameter("where")), _parameter("calls"), _parameter("seconds")
    )
    process = _process()
    abi = _abi(process)
    output = Path(_parameter("output") or default_path(recipe.name, process.pid))
    debug_files = _debug_files()
    with terminal_without_gdb() as terminal, target.quiet_settings(), target.no_files():
        writer = Writer(output)
        with ExitStack() as symbols:
            try:
                inferred = infer(recipe, process)
                packs = _packs(recipe, process, name)
                symbols.enter_context(target.symbols(process, recipe.modules, debug_files))
                probes = resolve(recipe, process, abi, inferred, packs)
                require_traceable(recipe, probes)
                target.attach(process, recipe.modules)
            except BaseException:
                writer.discard()
                raise
            command = os.environ.get("VIRTRACE_COMMAND")
            view = TerminalView(terminal, output, command)
            session = Session(
                recipe, chosen, process, abi, probes, _sources(), writer, view, command, _say_ready
            )
            _written.append(output)
            return session.run()


def _check(name: str) -> int:
    recipe = catalogue.find(name)
    process = _process()
    with target.quiet_settings(), target.no_files():
        inferred, packs = infer(recipe, process), _packs(recipe, process, name)
        with target.symbols(process, recipe.modules, _debug_files()):
            probes = resolve(recipe, process, _abi(process), inferred, packs)
    print(json.dumps(header_record(recipe, process, probes, time.monotonic_ns())), flush=True)
    return DONE


def _explain(file: str) -> int:
    path = file or (str(_written[-1]) if _written else "")
    if not path:
        raise UsageError("which trace?", "virtrace explain FILE, or trace a call first")
    explanations = explain_trace(read_trace(path), path)
    for line in explanation.lines(explanations, style_for(sys.__stdout__), path=path):
        print(line)
    return DONE


def _process() -> Process:
    pid = target.attached_pid()
    if pid:
        return require_libvirt(inspect(pid))
    wanted = os.environ.get("VIRTRACE_PID")
    if wanted is None:
        raise TargetError(
            "GDB is attached to no process",
            "gdb -x gdb_scripts/trace_blockinfo.py -p $(pidof libvirtd), as root",
        )
    return check_traceable(int(wanted))


def _abi(process: Process) -> Abi:
    libvirt = process.module("libvirt.so.0")
    assert libvirt is not None
    machine = libvirt.elf.machine
    if not libvirt.elf.is_little_endian_64:
        raise TargetError(
            f"the daemon runs on {machine}, and virtrace reads 64-bit little-endian values only",
            "trace a daemon of such a machine: x86_64, aarch64, ppc64le, riscv64",
        )
    return x86_64.ABI if machine == x86_64.ABI.machine else Abi(machine)


def _sources() -> Sources:
    folders = [Path(folder) for folder in _parameter("source").split(os.pathsep) if folder]
    # What `virtrace record` got from debuginfod.
    files = json.loads(os.environ.get("VIRTRACE_SOURCE_FILES", "{}"))
    return Sources(folders, {name: Path(file) for name, file in files.items()})


def _debug_files() -> dict[str, str]:
    """By build-id: what `virtrace record` got from debuginfod."""
    files: dict[str, str] = json.loads(os.environ.get("VIRTRACE_DEBUG_FILES", "{}"))
    return files


def _packs(recipe: Recipe, process: Process, recipe_name: str) -> dict[str, Pack]:
    """By the name of the module; those beside the recipe come first."""
    beside = catalogue.file_of(recipe_name).parent
    found = {}
    for name in recipe.modules:
        module = process.module(name)
        if module is not None and not module.elf.has_debug_info:
            pack = find_pack(module.elf, [beside])
            if pack is not None:
                found[name] = pack
    return found


def _parameter(name: str) -> str:
    return str(gdb.parameter(f"virtrace {name}") or "")


def _say_ready() -> None:
    """To `virtrace record`, which then runs the command to be traced."""
    descriptor = os.environ.get("VIRTRACE_READY_FD")
    if descriptor is not None:
        os.write(int(descriptor), b"ready\n")
        os.close(int(descriptor))


def _batch() -> bool:
    """GDB keeps this to itself, so its own command line has to tell."""
    arguments = Path("/proc/self/cmdline").read_bytes().split(b"\0")
    return any(argument in (b"-batch", b"--batch") for argument in arguments)
