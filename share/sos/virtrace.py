"""What `sos report` collects with virtrace: whether tracing works here, and what hangs.

Both read only; nothing is traced, and no daemon is stopped.
"""

from pathlib import Path

from sos.report.plugins import DebianPlugin, Plugin, RedHatPlugin, UbuntuPlugin

DAEMONS = (
    "libvirtd",
    *("virtinterfaced", "virtnetworkd", "virtnodedevd", "virtnwfilterd", "virtproxyd"),
    *("virtqemud", "virtsecretd", "virtstoraged"),
)


class Virtrace(Plugin, RedHatPlugin, DebianPlugin, UbuntuPlugin):
    """One report of the host, and one snapshot of each daemon of libvirt."""

    short_desc = "libvirt's daemons: can they be traced, do they hang"
    plugin_name = "virtrace"
    profiles = ("virt",)
    commands = ("virtrace",)

    def setup(self):
        """List the commands."""
        self.add_cmd_output("virtrace doctor --json")
        for name in Path("/proc").glob("[0-9]*/comm"):
            try:
                is_daemon = name.read_text().rstrip("\n") in DAEMONS
            except OSError:
                # It has ended meanwhile.
                continue
            if is_daemon:
                self.add_cmd_output(f"virtrace snapshot --json -p {name.parent.name}")
