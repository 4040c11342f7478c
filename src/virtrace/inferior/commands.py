"""The ``virtrace`` commands of GDB, and their parameters: `help virtrace` has them all."""

from __future__ import annotations

import io
import json
import os
import re
import shlex
import sys
import time
from collections.abc import Callable
from functools import partial, update_wrapper
from inspect import cleandoc
from pathlib import Path

import gdb

from virtrace.errors import DONE, INTERRUPTED, TargetError, UsageError
from virtrace.image.process import Process, inspect
from virtrace.inferior import printers, target
from virtrace.inferior.assembly import assembled
from virtrace.inferior.notes import Notebook
from virtrace.inferior.witness import resolved
from virtrace.plan.infer import infer
from virtrace.plan.witness import installed_packs
from virtrace.printing import fail, gated, print_lines, safe
from virtrace.recipe import catalogue, selection
from virtrace.record.header import header_record
from virtrace.record.job import Job
from virtrace.record.told import error_line
from virtrace.report.highlight import style_for
from virtrace.targets import LIBVIRT
from virtrace.targets.processes import (
    check_traceable,
    require_modules,
    require_target,
)
from virtrace.trace.rotation import last_file
from virtrace.trace.writer import default_path

_VIRTRACE = """Trace libvirt from its API down to QEMU's replies.

Attach GDB to the daemon first; then `virtrace start blockinfo` traces
`virsh domblkinfo`.
To keep what you do by hand as a recipe: `virtrace save FILE`."""
_CORE = re.compile(r"^Local core dump file:\n\t`(.*)', file type", re.M)
_SETTINGS = "Parameters of the `virtrace` commands."
# By name: what it is, more about it, and whether it is a file.
_PARAMETERS = {
    "output": (
        "the file to which a trace is written.",
        "It must not exist. Default: a new file in this folder for each trace.",
        True,
    ),
    "where": (
        "which calls are traced.",
        "KEY=VALUE ..., quoted as in a shell: only calls with these values. The keys\n"
        "are the values at the entry of a recipe's root: domain=vm1 disk=vda.",
        False,
    ),
    "calls": (
        "after how many calls a trace ends.",
        "Default: no limit.",
        False,
    ),
    "seconds": ("after how many seconds a trace ends.", "Default: no limit.", False),
    "source": (
        "the folder with libvirt's source.",
        "Folders separated by colons. Source lines are recorded with their text.",
        True,
    ),
    "max-stop-ms": (
        "for how many milliseconds in total one call may be held.",
        "More expensive probes are switched off, source lines first. Default: 2000.",
        False,
    ),
    "max-load": (
        "for which share of each second threads may be stopped, in percent.",
        "More expensive probes are switched off, source lines first. Default: 80.",
        False,
    ),
    "max-events": (
        "after how many events a trace ends.",
        "Default: 1000000.",
        False,
    ),
    "max-bytes": (
        "the largest size of a trace file, in bytes.",
        "Default: 1000000000.",
        False,
    ),
    "rotate": (
        "after how many bytes a trace continues in a new file.",
        "Each file is a trace, with a number in its name. Default: one file.",
        False,
    ),
    "keep": (
        "how many files of `rotate` are kept, counted from the last.",
        "Default: all.",
        False,
    ),
}


# The traces that this GDB wrote.
_written: list[Path] = []


class _Parameter(gdb.Parameter):
    def __init__(self, name: str, what: str, more: str, is_file: bool) -> None:
        variable = _variable(name)
        self.set_doc, self.show_doc = f"Set {what}", f"Show {what}"
        self.__doc__ = f"{more}\nThe initial value comes from the environment variable {variable}."
        kind = gdb.PARAM_OPTIONAL_FILENAME if is_file else gdb.PARAM_STRING_NOESCAPE
        super().__init__(f"virtrace {name}", gdb.COMMAND_TRACEPOINTS, kind)
        # GDB's own text has no place for bytes that are no text, nor for all text in some locales.
        self.value = safe(os.environ.get(variable, ""), unicode=False)

    def get_set_string(self) -> str:
        return ""

    def get_show_string(self, value: str) -> str:
        return value or "(not set)"


class _Prefix(gdb.Command):
    def __init__(self, name: str, doc: str) -> None:
        self.__doc__ = doc
        super().__init__(name, gdb.COMMAND_TRACEPOINTS, prefix=True)
        self._name = name

    def invoke(self, argument: str, from_tty: bool) -> None:
        if argument:
            raise gdb.GdbError(f'Undefined {self._name} command: "{argument}".')
        gdb.execute(f"help {self._name}")


class _Command(gdb.Command):
    """Does what the function does, whose documentation is its help.

    names: what its argument can be, apart from other files. ends_batch: a GDB without a user ends
    with it, and with its exit status.
    """

    def __init__(
        self,
        name: str,
        do: Callable[[str], int],
        names: Callable[[], list[str]] = list,
        ends_batch: bool = True,
    ) -> None:
        self.__doc__ = cleandoc(do.__doc__ or "")
        self._do = do
        self._names = names
        self._ends_batch = ends_batch
        super().__init__(f"virtrace {name}", gdb.COMMAND_TRACEPOINTS)

    def invoke(self, argument: str, from_tty: bool) -> None:
        _finish(lambda: self._do(argument.strip()), self._ends_batch)

    def complete(self, text: str, word: str | None) -> list[str] | int:
        begun = text.lstrip()
        names = [name for name in self._names() if name.startswith(begun)]
        if not names:
            return gdb.COMPLETE_FILENAME
        # GDB replaces the last word only, and has words end at a slash.
        return [name[len(begun) - len(word or "") :] for name in names]


def _recipes() -> list[str]:
    return [*catalogue.shipped(), *sorted(map(str, Path().glob("*.yaml")))]


def _traces() -> list[str]:
    return [*map(str, _written), *sorted(map(str, Path().glob("*.jsonl")))]


def register_commands() -> None:
    """Make the commands known to GDB; a second time changes nothing."""
    try:
        gdb.parameter("virtrace output")
    except RuntimeError:
        _Prefix("virtrace", _VIRTRACE)
        _Prefix("set virtrace", _SETTINGS)
        _Prefix("show virtrace", _SETTINGS)
        for name, (what, more, is_file) in _PARAMETERS.items():
            _Parameter(name, what, more, is_file)
        printers.register_printers()
        save = update_wrapper(partial(_save, Notebook()), _save)
        _Command("start", _start, _recipes)
        _Command("stop", _stop, ends_batch=False)
        _Command("status", _status, ends_batch=False)
        _Command("check", _check, _recipes)
        _Command("explain", _explain, _traces)
        _Command("snapshot", _snapshot, ends_batch=False)
        _Command("save", save, ends_batch=False)


def run(recipe: str, pid: int) -> None:
    """Trace the process by the recipe; 0: the one that the environment names, if any.

    In a batch GDB this also ends GDB, with virtrace's exit status.
    """
    _finish(lambda: _start(recipe, pid))


def _finish(work: Callable[[], int], ends_batch: bool = True) -> None:
    # Of GDB's own streams one tells nothing of the terminal, the other may be turned away.
    errors, terminal = sys.__stderr__ or io.StringIO(), sys.__stdout__ or io.StringIO()
    with gated(sys.stdout, errors, terminal):
        try:
            status = work()
        except KeyboardInterrupt:
            status = INTERRUPTED
        except Exception as error:
            status = fail(error)
    if ends_batch and _batch():
        # Not `quit`: what is still posted to its event loop makes GDB crash at exit, when its
        # Python has gone. Nothing is attached any more, and nothing else is left to do.
        gdb.flush()
        os._exit(status)


def run_job(document: int, ready: int) -> None:
    """Record the job that `virtrace record` hands over, and end GDB.

    document: the file descriptor of its JSON
    ready: the file descriptor that takes ``ready`` and a newline once every call is traced, and
        what ended the trace, if it was an error
    """

    def work() -> int:
        try:
            job = Job.from_json(os.pread(document, job_size + 1, 0))
            return _trace(job, check_traceable(job.pid), partial(_say_ready, ready))
        except Exception as error:
            os.write(ready, error_line(error))
            raise

    job_size = os.fstat(document).st_size
    _finish(work)


def _start(name: str, pid: int = 0) -> int:
    """Trace the process that GDB is attached to.

    Usage: virtrace start RECIPE

    RECIPE is the name of a shipped recipe, or a file. Ctrl-C ends the trace, and
    so do the parameters `calls` and `seconds`; then GDB detaches.
    """
    try:
        ready = os.environ.get("VIRTRACE_READY_FD")
        job, process = _job(_require_recipe(name), pid)
        return _trace(
            job, process, partial(_say_ready, int(ready), is_last=True) if ready else _nothing
        )
    finally:
        target.detach()


def _nothing() -> None:
    """Nobody waits for the moment when every call is traced."""


def _job(name: str, pid: int) -> tuple[Job, Process]:
    """Make the job that the parameters describe, and find its process."""
    recipe = catalogue.find_recipe(name)
    where = shlex.split(_parameter("where"))
    selected = selection.parse_selection(recipe, where, _parameter("calls"), _parameter("seconds"))
    limits = selection.limits({name: _parameter(name) for name in selection.LIMITS})
    rotation = selection.rotation(_parameter("rotate"), _parameter("keep"))
    process = _process(pid)
    require_modules(process, recipe.required_modules)
    job = Job(
        recipe,
        process.pid,
        Path(_parameter("output") or default_path(recipe.name, process.pid)),
        selected,
        limits,
        rotation,
        sources=[Path(folder) for folder in _parameter("source").split(os.pathsep) if folder],
        packs=[catalogue.file_of(name).parent],
    )
    return job, process


def _stop(_: str) -> int:
    """Say how a trace ends.

    Usage: virtrace stop

    A trace holds the prompt until it ends: where you can type this none runs.
    """
    print("no trace is running: a trace occupies the prompt until it ends")
    print(f"to end a trace: Ctrl-C, or from another terminal `kill -INT {os.getpid()}`")
    return DONE


def _status(_: str) -> int:
    """Say what GDB is attached to and what it has traced.

    Usage: virtrace status

    With the parameters that are set.
    """
    pid = target.attached_pid()
    if pid:
        process = inspect(pid)
        version = LIBVIRT.version_of(process)
        libvirt = f"libvirt {version}" if version else "no libvirt in it"
        print(f"attached  {process.exe}")
        print(f"          pid {pid}, {libvirt}; it is stopped at this prompt")
    else:
        print("attached  nothing: attach PID")
    print("tracing   nothing: a trace occupies the prompt until it ends")
    for path in _written:
        print(f"traced    {path}")
    for name in _PARAMETERS:
        if _parameter(name):
            print(f"set       virtrace {name} {_parameter(name)}")
    return DONE


def _save(notebook: Notebook, file: str) -> int:
    """Write what you look at by hand as a recipe.

    Usage: virtrace save FILE

    FILE must not exist, and its name ends in .yaml. It gets the functions at
    your breakpoints, and what `display`, `dprintf`, `commands` and each `print`
    of this session show. What a recipe cannot say stands in it as a comment.
    Save before you detach; then `virtrace start FILE`.
    """
    if not file.endswith(".yaml"):
        raise UsageError("the name must end in .yaml", "virtrace save mine.yaml")
    print(f"saved    {file}: {notebook.save(Path(file).expanduser())}")
    print(f"next     virtrace start {file}")
    return DONE


def _trace(job: Job, process: Process, ready: Callable[[], None]) -> int:
    with assembled(job, process, ready) as trace:
        try:
            return trace.run()
        finally:
            _written.append(last_file(job.output, job.rotation))


def _check(name: str) -> int:
    """Print what each probe of a recipe would resolve to.

    Usage: virtrace check RECIPE

    As the header of a trace, in JSON. GDB detaches from the process; nothing
    is traced.
    """
    recipe = catalogue.find_recipe(_require_recipe(name))
    process = _process()
    packs = installed_packs(recipe, process, [catalogue.file_of(name).parent])
    with target.quiet_settings(), target.no_files():
        inferred = infer(recipe, process)
        with target.symbols(process, recipe.modules, {}):
            plan = resolved(recipe, process, packs, inferred)
        header = header_record(
            recipe, process, plan, {"name": "gdb", "version": gdb.VERSION}, time.monotonic_ns()
        )
    print(json.dumps(header), flush=True)
    return DONE


def _snapshot(argument: str) -> int:
    """Say why the daemon hangs or crashed.

    Usage: virtrace snapshot

    And who waits for whom: in the process that GDB is attached to, or in the
    core that it has loaded. To look at a daemon without stopping it, leave
    GDB, and type `virtrace snapshot` in a shell.
    """
    from virtrace.report.snapshot import snapshot_lines
    from virtrace.snapshot.document import snapshot_of, snapshot_of_core
    from virtrace.snapshot.take import take_stopped

    if argument:
        raise UsageError("`virtrace snapshot` has no argument", "leave it out")
    core = _CORE.search(gdb.execute("info files", to_string=True) or "")
    if core is not None:
        snapshot = snapshot_of_core(Path(core[1]), Path("/"))
    else:
        process = _process()
        snapshot = snapshot_of(take_stopped(process), process, "process")
    print_lines(snapshot_lines(snapshot, style_for(sys.__stdout__, full=True), None))
    return DONE


def _explain(file: str) -> int:
    """Say what a trace means and why.

    Usage: virtrace explain [FILE]

    Without FILE: the last trace that this GDB wrote.
    """
    # Not above: a trace would wait for them, and for the table of causes, in vain.
    from virtrace.analysis.explain.trace import explain_trace
    from virtrace.report import explanation
    from virtrace.trace.reader import read_trace

    path = file or (str(_written[-1]) if _written else "")
    if not path:
        raise UsageError("no trace given", "virtrace explain FILE, or trace a call first")
    explained = explain_trace(read_trace(path), path)
    style = style_for(sys.__stdout__)
    lines = explanation.explanation_lines if explained else explanation.nothing_explained
    print_lines(lines(explained, style, path=path))
    return DONE


def _process(let_go: int = 0) -> Process:
    """let_go: what GDB was attached to."""
    pid = let_go or target.attached_pid()
    if pid:
        return require_target(inspect(pid))
    wanted = os.environ.get("VIRTRACE_PID")
    if wanted is None:
        raise TargetError(
            "GDB is attached to no process",
            "gdb -x gdb_scripts/trace_blockinfo.py -p $(pidof libvirtd), as root",
        )
    return check_traceable(int(wanted))


def _require_recipe(name: str) -> str:
    if not name:
        raise UsageError("no recipe given", f"virtrace start {catalogue.shipped()[0]}")
    return name


def _parameter(name: str) -> str:
    value = str(gdb.parameter(f"virtrace {name}") or "")
    given = os.environ.get(_variable(name), "")
    return given if value == safe(given, unicode=False) else value


def _variable(name: str) -> str:
    return f"VIRTRACE_{name.upper().replace('-', '_')}"


def _say_ready(descriptor: int, *, is_last: bool = False) -> None:
    """is_last: whether nothing more is to be said there."""
    os.write(descriptor, b"ready\n")
    if is_last:
        os.close(descriptor)


def _batch() -> bool:
    """GDB keeps this to itself, so its own command line has to tell."""
    arguments = Path("/proc/self/cmdline").read_bytes().split(b"\0")
    return any(argument in (b"-batch", b"--batch") for argument in arguments)
