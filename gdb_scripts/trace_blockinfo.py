"""Trace `virsh domblkinfo` through the libvirt daemon that GDB is attached to.

gdb -x gdb_scripts/trace_blockinfo.py -p $(pidof libvirtd)
"""

import os
import runpy

import gdb

# By now GDB has read what it wants to. What Python has to read need not keep the daemon waiting.
_pid = gdb.selected_inferior().pid
if _pid:
    gdb.execute("detach", to_string=True)

_folder = os.path.dirname(os.path.realpath(__file__))
_commands = runpy.run_path(os.path.join(_folder, "virtrace.py"))["commands"]
if _commands is None:
    gdb.execute("quit 3")
else:
    _commands.run("blockinfo", _pid)
