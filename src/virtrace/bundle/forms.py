"""What the key of a text says that it is, and what the form of a text does."""

from __future__ import annotations

import re

from virtrace.bundle.pseudonyms import KINDS

# What a key says of its text, in JSON, in XML and in `key=value`. Besides the kinds: `disk`, a
# target or a path; `place`, a path or something that is none; `command`, what a shell reads;
# `message`, prose of libvirt or QEMU; `name`, a name of whatever is called so elsewhere; `id`, the
# same, or a number; `code`, a name of C; `source`, a file of it; `own`, virtrace's words;
# `untyped`, nothing.
KEYS = {
    **dict.fromkeys(("domain", "dom", "guest", "vm", "domname"), "domain"),
    **dict.fromkeys(("host", "hostname", "server", "servername", "peer-hostname"), "host"),
    **dict.fromkeys(("serial", "wwn", "wwnn", "wwpn", "eui64", "asset", "family"), "serial"),
    **dict.fromkeys(("mac", "macaddr", "mac-address", "hwaddr", "main-mac"), "mac"),
    **dict.fromkeys(("user", "username", "owner", "group", "login", "sasl-username"), "user"),
    **dict.fromkeys(("pool", "vg-name", "poolname"), "pool"),
    **dict.fromkeys(("volume", "lv-name", "vol", "lv-full-name"), "volume"),
    **dict.fromkeys(
        ("snapshot", "snapshot-name", "tag", "checkpoint", "domainsnapshot"), "snapshot"
    ),
    **dict.fromkeys(("uuid", "genid"), "uuid"),
    **dict.fromkeys(
        (
            *("password", "passwd", "secret", "key", "data", "iv", "passphrase", "token", "ticket"),
            *("secret-data", "key-data", "credential", "credentials", "auth"),
        ),
        "secret",
    ),
    **dict.fromkeys(
        (
            *("path", "filename", "dir", "folder", "logfile", "backing-file", "exe"),
            *("backing-filename", "full-backing-filename", "snapshot-file", "mem-path"),
            *("backing-image", "directory", "fd-path", "datastore"),
        ),
        "path",
    ),
    **dict.fromkeys(
        (
            *("base", "top", "backing", "source", "dev", "target", "image", "socket", "kernel"),
            *("initrd", "dtb", "loader", "nvram", "emulator", "script", "downscript", "pidfile"),
            "pty",
        ),
        "place",
    ),
    **dict.fromkeys(("description", "title", "metadata", "comment", "notes"), "text"),
    **dict.fromkeys(("name", "label", "usage", "export", "network"), "name"),
    **dict.fromkeys(("id", "alias"), "id"),
    **dict.fromkeys(("desc", "message", "reason", "error", "why", "unavailable"), "message"),
    **dict.fromkeys(("command-line", "cmdline", "command", "append"), "command"),
    **dict.fromkeys(("function", "api"), "code"),
    "file": "source",
    "disk": "disk",
}
# In XML, where the element says more than the attribute or the key.
ELEMENTS = {
    "domain/name": "domain",
    "domainsnapshot/name": "snapshot",
    "host/name": "host",
    "source/name": "volume",
    "source/startupPolicy": "name",
    "source/network": "text",
    "source/bridge": "text",
    "source/mode": "name",
    "target/dev": "disk",
    "target/path": "path",
    "target/name": "text",
    "alias/name": "name",
    "type/machine": "untyped",
    "entry": "serial",
    "product": "name",
    "vendor": "name",
    "label": "text",
    "imagelabel": "text",
    "arg/value": "argument",
    "env/value": "argument",
    "env/name": "name",
    "graphics/listen": "host",
    "listen/address": "host",
    "ip/address": "ip",
    "address/domain": "untyped",
    "graphics/keymap": "untyped",
    "type": "untyped",
    "model": "untyped",
    "driver/name": "untyped",
    "boot/dev": "untyped",
    "backingStore": "text",
}
# QEMU tells of itself in the replies to these, not of a guest.
ABOUT_QEMU = frozenset(
    {
        *("query-version", "query-qmp-schema", "query-commands", "query-command-line-options"),
        *("qom-list-types", "qom-list-properties", "device-list-properties", "query-machines"),
        *("query-cpu-definitions", "query-cpu-model-expansion", "query-kvm", "query-target"),
        *("query-tpm-models", "query-tpm-types", "query-gic-capabilities", "qmp_capabilities"),
    }
)
# The snapshots inside an image have names too.
LISTS = {"snapshots": "snapshot", "bitmaps": "name", "dirty-bitmaps": "name"}

UUID = r"[0-9a-fA-F]{8}-(?:[0-9a-fA-F]{4}-){3}[0-9a-fA-F]{12}"
MAC = r"(?:[0-9a-fA-F]{2}:){5}[0-9a-fA-F]{2}"
IPV4 = r"(?:[0-9]{1,3}\.){3}[0-9]{1,3}"
IPV6 = r"(?:[0-9a-fA-F]{0,4}:){2,7}(?:[0-9a-fA-F]{1,4}|(?:[0-9]{1,3}\.){3}[0-9]{1,3})?"
TIME = (
    r"(?:[0-9]{4}-[0-9]{2}-[0-9]{2}[T ])?[0-9]{2}:[0-9]{2}:[0-9]{2}"
    r"(?:\.[0-9]+)?(?:Z|[+-][0-9]{4})?"
)
EMAIL = r"[\w.+-]+@[\w-]+(?:\.[\w-]+)+"
URI = r"[a-z][a-z0-9+.-]*://[^\s'\"<>`]*"
SHAPES = [
    (kind, re.compile(pattern))
    for kind, pattern in (("uuid", UUID), ("mac", MAC), ("ip", IPV4), ("ip", IPV6))
] + [("email", re.compile(EMAIL))]

# Of a backtrace: `function+0x12 (module)`, `module+0x12`, `0x12 (in no file)`; or a pseudonym.
FRAME = re.compile(r"[\w.@+-]+(?: \((?:[\w.+-]+|in no file)\))?")
TARGET = re.compile(r"(?:fd|hd|sd|vd|xvd|ubd|nvme[0-9]+n)[a-z0-9]{1,4}(?:\[[0-9]+\])?")
# What libvirt, QEMU and the kernel number by themselves, versions and numbers.
PLAIN = re.compile(
    r"""
    -?[0-9][0-9.,:_+/-]*(?:[kKMGTPE]i?B?|ms|us|ns|s|%)?  |  0x[0-9a-fA-F]+  |  [*?+@.-]+
    | v?[0-9]+(?:\.[0-9]+)+(?:[-+~][0-9.]+)?
    | libvirt-[0-9]+(?:-(?:format|storage|backing|slice|throttle))*(?:-sto|-filter)?
    | qemu-system-[a-z0-9_]+ | qemu-(?:kvm|img|nbd) | libvirtd | virt[a-z]+d
    | libvirt-CoR-(?:[hsv]|xv)d[a-z]+ | \#block[0-9]+ | (?:drive|libvirt)-\#?[0-9]+
    | (?:drive-|host|ua-)?(?:virtio-disk|virtio-serial|ide|sata|scsi|usb|usb-disk|fdc|pci|pcie|net
      |vnet|tap|macvtap|serial|parallel|console|channel|charmonitor|charserial|charchannel
      |charconsole|charparallel|mon|monitor|video|sound|audio|balloon|rng|objrng|watchdog|input
      |redir|fs|tpm|mem|memdimm|dimm|shmem|panic|hub|smartcard|hostdev|iothread|vcpu|cpu
      |masterKey|objmasterKey|ccid|vsock|iommu|vgamem|pflash|floppy|cd|thread)
      [0-9]+(?:[.-][0-9]+)*
    | (?:pci|pcie|ide|usb|scsi|sata|virtio-serial|virtio|isa|dimm)(?:\.[0-9]+)+
    | pc\.ram | pci | masterKey0 | charmonitor | (?:serial|channel|console)[0-9]+-source
    | (?:pc|q35|pc-q35|pc-i440fx|virt|pseries|s390-ccw-virtio)(?:-[0-9.]+(?:\+[0-9a-z]+)?)?
    | (?:fd|hd|sd|vd|xvd)[a-z]{1,2}
    | [0-9]{4}-[0-9]{2}-[0-9]{2}[T ][0-9:.]+(?:Z|[+-][0-9:]+)? | [0-9]{4}-[0-9]{2}-[0-9]{2}
    """,
    re.VERBOSE,
)
QOM = re.compile(r"/(?:machine|objects|chardevs|backend)(?:/[^/]*)*")
QOM_PART = re.compile(r"[\w.-]+\[[0-9]*\]")
CODE = re.compile(
    r"(?:vir|qemu|remote|storage|secret|network|node|bdrv|blk|qmp|hmp|monitor|q?io|object)"
    r"[A-Z_]\w*(?:\(\))?|(?:VIR|QEMU)_[A-Z_]+"
    r"|(?:\.\./)*(?:src|block|hw|util|tools)/[\w/.-]+\.[ch](?::[0-9]+)?|[\w-]+\.[ch]:[0-9]+"
)
IDENTIFIER = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
KEY = re.compile(r"[A-Za-z_#*][\w.+:*#/-]{0,63}", re.ASCII)

COMMON_FILE = re.compile(
    r"/usr/.*/(?:qemu-[a-z]+(?:-[a-z0-9_]+)*|kvm|libvirtd?|virt[a-z]+d|virsh|virtrace|sh|bash"
    r"|lib[\w+.-]*\.so[0-9.]*|OVMF_[\w.]+|bios[\w-]*\.bin)"
    r"|/lib(?:64)?/.*/lib[\w+.-]*\.so[0-9.]*|/bin/(?:sh|bash)|/dev/(?:kvm|null|zero|u?random|fuse|net/tun|vhost-(?:net|vsock|scsi))"
    r"|/dev/(?:sd[a-z]+|hd[a-z]+|vd[a-z]+|xvd[a-z]+|nvme[0-9]+n|loop|dm-|nbd|md|sr|pts/|fdset/)"
    r"[0-9p]*|/proc/self/fd/[0-9]+|/dev/fd/[0-9]+|.*/(?:monitor\.sock|master-key\.aes|libvirt-sock(?:-ro)?|(?:qemu|libvirtd|virt[a-z]+d)\.conf)"
)
LIBRARY = re.compile(r"libvirt[\w+-]*\.so[0-9.]*")

QUOTED = r"(?<!\w)'[^'\n]*'(?!\w)|(?<!\w)\"(?:[^\"\\\n]|\\.)*\"|`[^`\n]*`"
PROSE = re.compile(
    f"(?P<quoted>{QUOTED})|(?P<uri>{URI})|(?P<email>{EMAIL})|(?P<uuid>\\b{UUID}\\b)"
    f"|(?P<time>(?<![\\w.:]){TIME}(?![\\w:]*\\w))|(?P<mac>\\b{MAC}\\b)|(?P<ipv4>(?<![\\w.]){IPV4}(?![\\w.]))"
    f"|(?P<ipv6>(?<![\\w:]){IPV6}(?![\\w:]))"
    r"|(?P<path>(?<![\w./*])/[^\s'\"`,;()<>|&]+)|(?P<word>[\w.][\w.+@:/#%-]*|[^\x00-\x7f]+)"
)
# A name in brackets behind what it is the name of: (vm1), [vm1].
VIRSH = frozenset({"sh", "bash", "sudo", "virsh", "virtrace", "qemu-img", "qemu-io", "--"})
DEEPEST = 100
CUT = frozenset({"text", "bytes", "length"})
LARGE = 1 << 24

FLAGS = frozenset({"on", "off", "yes", "no", "true", "false", "none", "auto", "default"})
# What somebody has given a name to.
NAMES = frozenset(KINDS) - {"host", "path", "serial", "secret"}
# Accounts and names that every host has.
NOBODY = {
    "user": frozenset({"root", "qemu", "kvm", "libvirt-qemu", "libvirt", "nobody", "0"}),
    "host": frozenset({"localhost"}),
}
