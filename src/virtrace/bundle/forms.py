"""What the key of a text says that it is, and what the form of a text does."""

from __future__ import annotations

import functools
import ipaddress
import re
from collections.abc import Iterator

from virtrace.bundle.pseudonyms import KINDS

# What a key says of its text, in JSON, in XML and in `key=value`. Besides the kinds: `disk`, a
# target or a path; `place`, a path or something that is none; `command`, what a shell reads;
# `message`, prose of libvirt or QEMU; `name`, a name of whatever is called so elsewhere; `id`, the
# same; `code`, a name of C; `source`, a file of it; `untyped`, nothing.
KEYS = {
    **dict.fromkeys(("domain", "dom", "guest", "vm", "domname"), "domain"),
    **dict.fromkeys(("host", "hostname", "server", "servername", "peer-hostname"), "host"),
    **dict.fromkeys(("serial", "wwn", "wwnn", "wwpn", "eui64", "asset", "family", "iqn"), "serial"),
    **dict.fromkeys(("mac", "macaddr", "mac-address", "hwaddr", "main-mac"), "mac"),
    **dict.fromkeys(("user", "username", "owner", "group", "login"), "user"),
    **dict.fromkeys(("pool", "vg-name", "poolname"), "pool"),
    **dict.fromkeys(("volume", "lv-name", "vol", "lv-full-name"), "volume"),
    **dict.fromkeys(
        ("snapshot", "snapshot-name", "tag", "checkpoint", "domainsnapshot"), "snapshot"
    ),
    **dict.fromkeys(("uuid", "guid", "genid"), "uuid"),
    **dict.fromkeys(
        (
            *("key", "data", "iv", "ticket", "key-data", "auth", "pass", "pin"),
            *("input-data", "out-data", "err-data", "buf-b64"),
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
    "email": "email",
    "ip": "ip",
}
# Such words in a key say that its value is a secret, whatever else the key says.
PASSWORD = re.compile(
    "passw(?:or)?d|passphrase|passcode|secret|token|credential|cookie|api-?key|private-?key|psk|(?:^|-)pin$"
)
# What a key can end with, as `vnc-owner-uuid` does.
_ENDS = ("uuid", "guid", "serial", "wwn", "wwpn", "wwnn", "mac", "macaddr", "path", "filename",
         "user", "username", "hostname", "email", "login")  # fmt: skip


@functools.lru_cache(maxsize=8192)
def kind_of_key(key: str) -> str | None:
    """What a key says that its text is, a kind or one of the others of KEYS; None: nothing."""
    name = re.sub(r"(?<=[a-z])(?=[A-Z])|[_.\s]", "-", key).lower()
    if name in KEYS:
        return KEYS[name]
    if PASSWORD.search(name):
        return "secret"
    *before, last = name.split("-")
    if last in _ENDS:
        return KEYS[last]
    if before and last in ("name", "names", "dname"):
        return KEYS.get(before[-1])
    return None


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
    "source/portgroup": "text",
    "source/portid": "text",
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
# The snapshots inside an image have names too.
LISTS = {"snapshots": "snapshot", "bitmaps": "name", "dirty-bitmaps": "name"}

TIME = (
    r"(?:[0-9]{4}-[0-9]{2}-[0-9]{2}[T ])?[0-9]{2}:[0-9]{2}:[0-9]{2}"
    r"(?:\.[0-9]+)?(?:Z|[+-][0-9]{2}:?[0-9]{2})?"
)
URI = r"[a-z][a-z0-9+.-]*://[^\s'\"<>`]*"
_HEX = "[0-9A-Fa-f]"
# With the full stops of other scripts, too.
_OCTETS = r"[0-9]{1,3}(?:[.\uff0e\u3002][0-9]{1,3}){3}"
# What identifies something by its form alone, wherever it stands.
SHAPES = re.compile(
    rf"""
    (?P<email> (?<![\w.+-])[\w.+-]+@[\w-]+(?:\.[\w-]+)* )
    | (?P<uuid> (?<![0-9A-Za-z]){_HEX}{{8}}-(?:{_HEX}{{4}}-){{3}}{_HEX}{{12}}(?![0-9A-Za-z]) )
    | (?P<mac> (?<![0-9A-Za-z])(?:
          {_HEX}{{2}}(?P<between>[-:._ ])(?:{_HEX}{{2}}(?P=between)){{4,18}}{_HEX}{{2}}
        | (?:{_HEX}{{1,2}}:){{5}}{_HEX}{{1,2}}
        | {_HEX}{{4}}(?P<groups>[-:.]){_HEX}{{4}}(?P=groups){_HEX}{{4}}
        | {_HEX}{{6}}[-:.]{_HEX}{{6}}
      )(?![0-9A-Za-z]|:[0-9A-Fa-f]) )
    | (?P<ip> (?<![\w.]){_OCTETS}(?!\.?\w)
        | (?<![\w:.])(?:{_HEX}{{0,4}}:){{2,7}}(?:{_OCTETS}|{_HEX}{{0,4}})(?:%[\w.-]+)?(?![\w:]) )
    | (?P<serial> (?<![0-9A-Za-z])(?:0[xX]|(?=[0-9]*[A-Fa-f])){_HEX}{{12,}}(?![0-9A-Za-z]) )
    | (?P<host> (?<![\w.-])(?:[\w-]+\.)+(?:com|net|org|edu|gov|mil|example|test|local|lan|internal
        |intern|corp|home|arpa|de|ch|fr|eu|uk|nl|pl|cz|ru|cn|jp|kr|br)(?![\w-]|\.\w) )
    """,
    re.VERBOSE,
)


def shapes(text: str) -> Iterator[tuple[str, re.Match[str]]]:
    """What stands in it that identifies something by its form, and its kind."""
    for found in SHAPES.finditer(text):
        kind = str(found.lastgroup)
        if kind == "ip" and not _is_address(found[0]):
            continue
        if kind == "serial" and PLAIN.fullmatch(found[0]):
            continue
        yield kind, found


def _is_address(text: str) -> bool:
    """Of a host: not the host itself, and nothing that only looks like an address."""
    if ":" not in text:
        # With leading zeros too, which ipaddress does not take.
        text = ".".join(str(int(part)) for part in re.findall("[0-9]+", text))
    try:
        address = ipaddress.ip_address(text.partition("%")[0])
    except ValueError:
        return False
    return not (address.is_loopback or address.is_unspecified)


PROGRAM = (
    r"qemu-(?:img|nbd|io|kvm|storage-daemon|bridge-helper|pr-helper|system-(?:x86_64|i386|aarch64|arm"
    r"|ppc64|ppc|s390x|riscv64|riscv32|loongarch64|mips64el|sparc64))"
    r"|libvirtd|virt(?:qemu|log|lock|storage|network|nodedev|secret|proxy|interface|nwfilter|lxc|ch)d"
)
# Of a backtrace: `function+0x12 (module)`, `module+0x12`, `0x12 (in no file)`; or a pseudonym.
FRAME = re.compile(r"[\w.@+-]+(?: \((?:[\w.+-]+|in no file)\))?")
LOOPBACK = re.compile(r"127(?:\.[0-9]{1,3}){3}|0\.0\.0\.0|localhost|\[?::1?\]?")
TARGET = re.compile(r"(?:fd|hd|sd|vd|xvd|ubd|nvme[0-9]+n)[a-z0-9]{1,4}(?:\[[0-9]+\])?")
# What libvirt, QEMU and the kernel number by themselves, versions and numbers.
PLAIN = re.compile(
    r"""
    [-+]?[0-9]{1,5}(?:\.[0-9]{1,9})?(?:[kKMGTPE](?:i?B)?|B|ms|us|ns|s|%)?
    | [0-9]{1,15}(?:[kKMGTPE]i?B|[KMGT])  |  [*?+@.-]+
    | [0-9]{1,3}(?:[,:/_+-][0-9]{1,3}){1,2}
    | 0x0{0,8}[0-9a-fA-F]{1,8} | 0x0{0,4}(?:7[ef]|5[56])[0-9a-f]{10} | 0x(?:aaaa|ffff)[0-9a-f]{8,12}
    | (?:[0-9a-f]{4}:)?[0-9a-f]{2}:[0-9a-f]{2}\.[0-7]
    | """
    + f"(?:{LOOPBACK.pattern})?"
    + r"""(?::[0-9]{1,5})? | /[0-9]{1,3}
    | (?!v?[0-9]{1,3}(?:\.[0-9]{1,3}){3}(?![0-9.]))
      (?:[0-9]:)?v?[0-9]{1,5}(?:\.[0-9]{1,5}){1,3}(?:\.[0-9]{8}-git)?
      (?:[-+~.](?:[0-9]{1,5}|dfsg|ds|git|b[0-9]{1,2}|rc[0-9]+|deb[0-9]+u[0-9]+|ubuntu[0-9.]+
      |bpo[0-9]+|el[0-9_]+|fc[0-9]+))*
    | libvirt-[0-9]+(?:-(?:format|storage|backing|slice|throttle))*(?:-sto|-filter)?
    | """
    + PROGRAM
    + r"""
    | libvirt-CoR-(?:[hsv]|xv)d[a-z]+ | \#block[0-9]+ | (?:drive|libvirt)-\#?[0-9]+
    | (?:drive-|host|ua-)?(?:virtio-disk|virtio-serial|ide|sata|scsi|usb|usb-disk|fdc|pci|pcie|net
      |vnet|tap|macvtap|serial|parallel|console|channel|charmonitor|charserial|charchannel
      |charconsole|charparallel|mon|monitor|video|sound|audio|balloon|rng|objrng|watchdog|input
      |redir|fs|tpm|mem|memdimm|dimm|shmem|panic|hub|smartcard|hostdev|iothread|vcpu|cpu
      |masterKey|objmasterKey|ccid|vsock|iommu|vgamem|pflash|floppy|cd|thread)
      [0-9]{1,3}(?:[.-][0-9]{1,3}){0,3}
    | (?:pci|pcie|ide|usb|scsi|sata|virtio-serial|virtio|isa|dimm)(?:\.[0-9]{1,3}){1,3}
    | pc\.ram | pci | masterKey0 | charmonitor | (?:serial|channel|console)[0-9]+-source
    | (?:pc|q35|pc-q35|pc-i440fx|virt|pseries|s390-ccw-virtio)(?:-[0-9.]+(?:\+[0-9a-z]+)?)?
    | (?:fd|hd|sd|vd|xvd)[a-z]{1,2}
    | [0-9]{4}-[0-9]{2}-[0-9]{2}(?:[T ][0-9:]{5,8}(?:\.[0-9]+)?(?:Z|[+-][0-9:]{4,5})?)?
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

# Names of files that packages install, or that libvirt gives; of what stands before it nothing.
COMMON_NAME = re.compile(
    PROGRAM + r"|kvm|virsh|virtrace|sh|bash|env|sudo|gdb"
    r"|lib(?:c|glib|gio|nbd|ssh|yajl|json|curl|iscsi|rados|rbd|pthread)[0-9.-]*\.so[0-9.]*"
    r"|OVMF_(?:CODE|VARS)(?:_4M)?(?:\.ms|\.secboot)?\.fd|bios(?:-256k|-microvm)?\.bin|monitor\.sock"
    rf"|master-key\.aes|(?:libvirt|virt[a-z]{{2,9}}d)-sock(?:-ro|-admin)?|(?:qemu|{PROGRAM})\.conf"
)
DEVICE = re.compile(
    r"/dev/(?:kvm|null|zero|u?random|fuse|net/tun|vhost-(?:net|vsock|scsi)|(?:sd|hd|vd|xvd)[a-z]{1,3}"
    r"[0-9]{0,3}|(?:nvme[0-9]{1,3}n|loop|dm-|nbd|md|sr|pts/|fdset/|fd/)[0-9]{1,4}(?:p[0-9]{1,3})?)"
    r"|/proc/self/fd/[0-9]{1,5}"
)
LIBRARY = re.compile(r"libvirt[\w+-]*\.so[0-9.]*")

# Punctuation of other scripts; whatever else is not ASCII is taken for letters.
_MARKS = (
    "\u00a0-\u00a9\u00ab-\u00b4\u00b6-\u00b9\u00bb-\u00bf\u00d7\u00f7\u2000-\u206f\u3000-\u3020\u30fb"
    "\uff01-\uff0f\uff1a-\uff20\uff3b-\uff40\uff5b-\uff65"
)
_LETTER = rf"[^\x00-\x7f{_MARKS}]"
# Quotation marks, each pair two characters, as they are set in several languages.
_PAIRS = re.findall(
    "..",
    "\u201c\u201d\u201e\u201c\u201e\u201d\u201d\u201d\u2018\u2019\u201a\u2018\u00ab\u00bb\u00bb\u00ab\u2039\u203a"
    "\u300c\u300d\u300e\u300f\u300a\u300b",
)
QUOTED = "|".join(
    (
        r"(?<!\w)'[^'\n]*'(?!\w)|(?<!\w)\"(?:[^\"\\\n]|\\.)*\"|`[^`'\n]*'|`[^`\n]*`",
        *(f"{pair[0]}[^{pair}\n]+{pair[1]}" for pair in _PAIRS),
    )
)
PROSE = re.compile(
    f"(?P<quoted>{QUOTED})|(?P<uri>{URI})|(?P<time>(?<![\\w.:]){TIME}(?![\\w:]*\\w))"
    rf"|(?P<path>(?<![\w./*])/[^\s'\"`,;()<>|&{_MARKS}]+)"
    rf"|(?P<word>(?:[\w.]|{_LETTER})(?:[\w.+@:/#%-]|{_LETTER})*)"
)
# Bytes that a program of the C locale shows of a name.
ESCAPED = re.compile(r"(?:\\[0-3][0-7]{2}|\\x[0-9a-fA-F]{2})+")
# Behind such a word a number counts something; before such a unit too.
COUNTED = re.compile(
    r"(?:^|[-_. ])(?:sizes?|bytes?|mem|memory|capacity|allocation|physical|offset|length|len|limit"
    r"|max|min|maximum|minimum|iops|period|quota|shares|time|ns|ms|us|frequency|sectors?|blocks?"
    r"|clusters?|pid|tid|process|thread|adjustment|bandwidth|speed|rate|ram|vram|count|total|used"
    r"|free|start|end|position|port|line|LWP)(?:[-_. ]|$)"
)
UNIT = re.compile(
    r"\s?(?:bytes?|B|[KMGT]i?B|sectors?|blocks?|clusters?|pages?|ns|ms|us|s|seconds)\b"
)
# Programs whose arguments are names of this host, and words before which nothing is known.
PROGRAMS = frozenset({"sh", "bash", "sudo", "virsh", "virtrace", "qemu-img", "qemu-io", "--"})
# Of virsh's commands and QEMU's: what their arguments are, in order; the last one goes on.
ARGUMENTS = {
    "set-user-password": ("domain", "user", "secret"),
    "secret-set-value": ("uuid", "secret"),
    "set_password": ("untyped", "secret", "untyped"),
    "change": ("untyped", "untyped", "secret"),
    "block_passwd": ("untyped", "secret"),
    "send-key": ("domain", "secret"),
    "sendkey": ("secret",),
    "info": ("untyped",),
}
# What recipes say in place of names.
PLACEHOLDERS = frozenset({"DOMAIN", "DISK", "POOL", "VOLUME", "DESTINATION", "URI", "COMMAND"})
DEEPEST = 100
CUT = frozenset({"text", "bytes", "length"})
LARGE = 1 << 24

FLAGS = frozenset({"on", "off", "yes", "no", "true", "false", "none", "auto", "default"})
# What somebody has given a name to.
NAMES = frozenset(KINDS) - {"host", "path", "serial"}
# Of these what has the form of another kind is that.
SHAPED = frozenset({"uuid", "mac", "ip", "email", "volume"})
# Accounts and names that every host has.
NOBODY = {
    "user": frozenset({"root", "qemu", "kvm", "libvirt-qemu", "libvirt", "nobody", "0"}),
}
