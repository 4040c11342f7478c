"""Files of Debian's packages, which are not installed, kept in the cache of roots."""

from __future__ import annotations

from pathlib import Path

from virtrace.errors import LabError
from virtrace.lab.roots import (
    apt_sources,
    cache_folder,
    keep_in_cache,
    key_of,
    require_tools,
    run_mmdebstrap,
)


def ensure_downloaded(kind: str, suite: str, script: str, files: str) -> Path:
    """The folder of the files, downloaded now if they are not in the cache.

    kind: what the files are, for the name of their folder
    suite: code name of the release
    script: a command of the shell, which runs when apt knows the release's packages. $1 is a root,
        where it leaves the files in a folder
    files: that folder, as a path in the root

    Raises:
        LabError: they could not be downloaded; the log is then in the cache
    """
    finished = cache_folder() / kind / f"{suite}-{key_of([script])}"
    if finished.is_dir():
        return finished
    require_tools(f"the {kind} of Debian's {suite} cannot be downloaded")

    def fill(work: Path) -> None:
        log = finished.parent / f"{finished.name}.log"
        status = run_mmdebstrap(
            [
                *("--variant=custom", "--format=null", f"--extract-hook={script}"),
                f"--extract-hook=sync-out {files} {work}",
                # As for roots: a snapshot of an archive is as good.
                '--aptopt=Acquire::Check-Valid-Until "false"',
                *(suite, "-", *apt_sources(suite)),
            ],
            log,
        )
        if status != 0:
            raise LabError(
                f"the {kind} of Debian's {suite} could not be downloaded "
                f"(mmdebstrap ended with {status})",
                f"read the end of {log}",
            )
        log.unlink()

    keep_in_cache(finished, fill, print)
    return finished
