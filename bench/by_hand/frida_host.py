"""Runs chain.js in the daemon by frida until standard input ends; its messages go to a file."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Union

import frida

Message = Union[frida.ScriptPayloadMessage, frida.ScriptErrorMessage]


def main() -> None:
    with open(os.environ["BENCH_OUTPUT"], "w") as output:

        def write(message: Message, _: bytes | None) -> None:
            print(message.get("payload", message), file=output, flush=True)

        session = frida.attach(int(sys.argv[1]))
        source = Path(__file__).with_name("chain.js").read_text()
        script = session.create_script(f"const chain = {os.environ['BENCH_CHAIN']};\n{source}")
        script.on("message", write)
        script.load()
        Path(os.environ["BENCH_READY"]).write_text("ready\n")
        sys.stdin.read()
        script.unload()
        session.detach()


if __name__ == "__main__":
    main()
