"""What the form of a text implies about it."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterator

TIME = (
    r"(?:[0-9]{4}-[0-9]{2}-[0-9]{2}[T ])?[0-9]{2}:[0-9]{2}:[0-9]{2}"
    r"(?:\.[0-9]+)?(?:Z|[+-][0-9]{2}:?[0-9]{2})?"
)
URI = r"[a-z][a-z0-9+.-]*://[^\s'\"<>`]*"
_HEX = "[0-9A-Fa-f]"
# Also with the full stops of other scripts.
_OCTETS = r"[0-9]{1,3}(?:[.\uff0e\u3002][0-9]{1,3}){3}"
# What identifies something by its form alone.
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
    """Yield the parts of a text that identify something by their form, and their kinds."""
    for found in SHAPES.finditer(text):
        kind = str(found.lastgroup)
        if kind == "ip" and not _is_address(found[0]):
            continue
        if kind == "serial" and PLAIN.fullmatch(found[0]):
            continue
        yield kind, found


def _is_address(text: str) -> bool:
    """Whether this is an address, and not one that every host has."""
    if ":" not in text:
        # ipaddress rejects leading zeros.
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
# A frame of a backtrace, `function+0x12 (module)`, `module+0x12`, `0x12 (in no file)`, or a
# pseudonym.
FRAME = re.compile(r"[\w.@+-]+(?: \((?:[\w.+-]+|in no file)\))?")
LOOPBACK = re.compile(r"127(?:\.[0-9]{1,3}){3}|0\.0\.0\.0|localhost|\[?::1?\]?")
TARGET = re.compile(r"(?:fd|hd|sd|vd|xvd|ubd|nvme[0-9]+n)[a-z0-9]{1,4}(?:\[[0-9]+\])?")
# Numbers, versions, and names that libvirt, QEMU and the kernel make by counting.
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

# Names of files that packages install or libvirt chooses; their folders may be private.
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

# Punctuation of other scripts; everything else outside of ASCII counts as letters.
_MARKS = (
    "\u00a0-\u00a9\u00ab-\u00b4\u00b6-\u00b9\u00bb-\u00bf\u00d7\u00f7\u2000-\u206f\u3000-\u3020\u30fb"
    "\uff01-\uff0f\uff1a-\uff20\uff3b-\uff40\uff5b-\uff65"
)
_LETTER = rf"[^\x00-\x7f{_MARKS}]"
# Pairs of quotation marks of several languages.
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
# Bytes of a name, as a program in the C locale prints them.
ESCAPED = re.compile(r"(?:\\[0-3][0-7]{2}|\\x[0-9a-fA-F]{2})+")
# A number after such a word is a quantity, and so is one before such a unit.
COUNTED = re.compile(
    r"(?:^|[-_. ])(?:sizes?|bytes?|mem|memory|capacity|allocation|physical|offset|length|len|limit"
    r"|max|min|maximum|minimum|iops|period|quota|shares|time|ns|ms|us|frequency|sectors?|blocks?"
    r"|clusters?|pid|tid|process|thread|adjustment|bandwidth|speed|rate|ram|vram|count|total|used"
    r"|free|start|end|position|port|line|LWP)(?:[-_. ]|$)"
)
UNIT = re.compile(
    r"\s?(?:bytes?|B|[KMGT]i?B|sectors?|blocks?|clusters?|pages?|ns|ms|us|s|seconds)\b"
)
# Programs whose arguments are names of this host, and what ends a program's options.
PROGRAMS = frozenset({"sh", "bash", "sudo", "virsh", "virtrace", "qemu-img", "qemu-io", "--"})
# What recipes have in place of names.
PLACEHOLDERS = frozenset({"DOMAIN", "DISK", "POOL", "VOLUME", "DESTINATION", "URI", "COMMAND"})

FLAGS = frozenset({"on", "off", "yes", "no", "true", "false", "none", "auto", "default"})
