"""Trace `virsh domblkinfo` through the libvirt daemon that GDB is attached to.

gdb -x gdb_scripts/trace_blockinfo.py -p $(pidof libvirtd)
"""

import os
import runpy

import gdb

_folder = os.path.dirname(os.path.realpath(__file__))
_commands = runpy.run_path(os.path.join(_folder, "virtrace.py"))["commands"]
if _commands is None:
    # Rather no GDB than one that keeps the daemon standing still.
    gdb.execute("quit 3")
else:
    _commands.run("blockinfo")
