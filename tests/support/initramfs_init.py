"""The first program of a virtual machine: runs one command, and powers the machine off.

`machine.json` has the command. Its output goes to the first serial port, and a tar archive with
what it leaves in `/results` to the second one. `/results/status` is its exit status.
"""

import ctypes
import json
import os
import subprocess
import sys
import tarfile
import tty

MOUNTS = (
    ("devtmpfs", "/dev"),
    ("proc", "/proc"),
    ("sysfs", "/sys"),
    ("tracefs", "/sys/kernel/tracing"),
    ("bpf", "/sys/fs/bpf"),
)
_POWER_OFF = 0x4321FEDC

libc = ctypes.CDLL(None, use_errno=True)


def mount(kind: str, folder: str) -> None:
    os.makedirs(folder, exist_ok=True)
    if libc.mount(kind.encode(), folder.encode(), kind.encode(), 0, None) != 0:
        # The kernel mounts some of them by itself.
        print(f"{folder}: {os.strerror(ctypes.get_errno())}", flush=True)


def main() -> None:
    for kind, folder in MOUNTS:
        mount(kind, folder)
    console = os.open("/dev/ttyS0", os.O_RDWR)
    for descriptor in range(3):
        os.dup2(console, descriptor)
    os.makedirs("/tmp", exist_ok=True)
    os.mkdir("/results")
    with open("/machine.json") as file:
        machine = json.load(file)
    done = subprocess.run(machine["command"], env=machine["environment"])
    with open("/results/status", "w") as status:
        status.write(str(done.returncode))
    port = os.open("/dev/ttyS1", os.O_RDWR)
    tty.setraw(port)
    with os.fdopen(port, "wb") as output, tarfile.open(fileobj=output, mode="w|gz") as archive:
        archive.add("/results", ".")
    # Closing the port waits until all is sent.


try:
    main()
finally:
    sys.stdout.flush()
    libc.reboot(_POWER_OFF)
