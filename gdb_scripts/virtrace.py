"""Source this in GDB (10 or later) for the `virtrace` commands; it traces nothing by itself.

(gdb) source gdb_scripts/virtrace.py
(gdb) virtrace start blockinfo
"""

import gc
import os
import sys
from glob import glob


def _find_packages() -> None:
    # As a checkout has them, then as an installed package has them beside this file.
    here = os.path.dirname(os.path.realpath(__file__))
    source = os.path.join(os.path.dirname(here), "src")
    installed = os.path.dirname(os.path.dirname(here))
    checkout = os.path.isdir(os.path.join(source, "virtrace"))
    sys.path.insert(0, source if checkout else installed)
    # What the Python inside GDB lacks; last, as it was built for another Python.
    sys.path.extend(glob(os.path.join(os.path.dirname(here), ".venv/lib/python3*/site-packages")))


_find_packages()

# What is imported stays: looking for garbage in it takes a tenth of the time of the import.
gc.disable()
try:
    from virtrace.inferior import commands
except ImportError as error:
    commands = None  # type: ignore[assignment]
    sys.stderr.write(
        f"virtrace: Python {sys.version.split()[0]} inside this GDB cannot import {error.name}\n"
        "try: `make setup` in the checkout; GDB 10 or later with Python 3.9 or later\n"
    )
else:
    commands.register_commands()
finally:
    gc.enable()
