"""A guest whose agent says that it is there, and answers nothing but what a test wants."""

from __future__ import annotations

import json
import os
import queue
import shutil
import socket
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Optional
from xml.sax.saxutils import quoteattr

from tests.support.waiting import PATIENCE
from virtrace.lab.daemon import Lab
from virtrace.lab.guest import domain_xml

# Whoever asks for the port of an agent gets one that is open, as a guest would open it: libvirt
# connects to no other. The lab's guest has no operating system that could.
_EMULATOR = """\
#!/bin/bash
exec {emulator} "${{@//virtserialport/virtconsole}}"
"""
_CHANNEL = """
    <channel type='unix'>
      <source mode='connect' path={path}/>
      <target type='virtio' name='org.qemu.guest_agent.0'/>
    </channel>"""
# What an agent answers, by command; None: nothing, and it hangs up.
Answers = Mapping[str, Optional[dict[str, Any]]]
# What libvirt sends in front of a command.
_SYNC = "guest-sync"
_RESET = b"\n\r\xff"


class SilentAgent:
    """The other end of the socket on which QEMU and libvirt look for an agent."""

    def __init__(self, path: Path, uid: int, gid: int, answers: Answers) -> None:
        self._answers = answers
        self._commands: queue.Queue[str] = queue.Queue()
        self._connections: list[socket.socket] = []
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(path))
        os.chown(path, uid, gid)
        self._listener.listen()
        threading.Thread(target=self._accept, daemon=True).start()

    def asked(self) -> str:
        """Wait for a command, and return it as libvirt sent it."""
        return self._commands.get(timeout=PATIENCE)

    def hang_up(self) -> None:
        """End all connections: libvirt takes the agent for gone."""
        # A close alone would not end the accept and the reads of the threads.
        for each in (self._listener, *self._connections):
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                connection, _ = self._listener.accept()
                self._connections.append(connection)
                threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        with connection, suppress(OSError), connection.makefile("rb") as lines:
            for line in lines:
                text = line.strip(_RESET).decode()
                if not text:
                    continue
                said = json.loads(text)
                if said["execute"] == _SYNC:
                    answer = {"return": said["arguments"]["id"]}
                    connection.sendall(json.dumps(answer).encode() + b"\n")
                elif said["execute"] in self._answers:
                    wanted = self._answers[said["execute"]]
                    if wanted is None:
                        return
                    connection.sendall(json.dumps(wanted).encode() + b"\n")
                else:
                    self._commands.put(text)


@contextmanager
def silent_agent(lab: Lab, guest: str, answers: Answers | None = None) -> Iterator[SilentAgent]:
    """Run a further guest with such an agent meanwhile.

    answers: by command; None: the agent hangs up
    """
    folder = lab.folder / guest
    folder.mkdir(mode=0o711)
    emulator = folder / "qemu"
    emulator.write_text(_EMULATOR.format(emulator=lab.system.emulator))
    emulator.chmod(0o755)
    agent = SilentAgent(folder / "agent.sock", lab.system.uid, lab.system.gid, answers or {})
    channel = _CHANNEL.format(path=quoteattr(str(folder / "agent.sock")))
    definition = folder / "guest.xml"
    definition.write_text(domain_xml(guest, str(emulator), False, channel))
    try:
        lab.virsh_checked("define", str(definition))
        lab.virsh_checked("start", guest)
        yield agent
    finally:
        agent.hang_up()
        lab.virsh("destroy", guest)
        lab.virsh("undefine", guest)
        shutil.rmtree(folder)
