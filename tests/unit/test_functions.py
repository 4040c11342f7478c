from __future__ import annotations

import platform
import subprocess
from pathlib import Path

import pytest

from tests.support.toolchain import build, need
from virtrace.binary.elf import ElfFile
from virtrace.binary.functions import Functions, Instructions
from virtrace.binary.x86_64 import cheap_entry, instructions
from virtrace.errors import TargetError, Unavailable

pytestmark = pytest.mark.skipif(platform.machine() != "x86_64", reason="builds x86-64 code")

API = "virDomainGetThing"
CALLS = "qemuMonitorGetThing"
BUILD_ID = "0123456789abcdef0123456789abcdef01234567"

# A driver as libvirt's are: methods in a table of pointers, an access check first.
DRIVER = """
#define STATIC static __attribute__((noinline, noclone))
#define EXPORT __attribute__((visibility("default")))
extern int virDomainGetThingEnsureACL(void *conn);
extern int virDomainGetOtherEnsureACL(void *conn);
extern void virReportError(int code) __attribute__((cold));
extern int work(int n);

EXPORT int qemuMonitorGetThing(int n) { return work(n) + 1; }
STATIC int gather(int n, int *out) { *out = qemuMonitorGetThing(n); return work(*out) - n; }
STATIC int decoy(int n) { return work(n) * 3; }
STATIC int getThing(void *conn, int n)
{
    int out = 0;
    if (virDomainGetThingEnsureACL(conn) < 0)
        return -1;
    if (gather(n, &out) < 0 || decoy(n) == 5)
        return -2;
    return out + 1;
}
STATIC int getOther(void *conn, int n)
{
    int out = 0;
    if (virDomainGetOtherEnsureACL(conn) < 0)
        return -1;
    return gather(n, &out) + out;
}
EXTRA
typedef int (*method)(void *, int);
EXPORT const method table[] = { getThing, getOther, MORE };
"""


class Driver:
    """A library with the symbols of its unstripped twin to compare with."""

    def __init__(self, folder: Path, *flags: str, extra: str = "", more: str = "") -> None:
        need("nm", "strip")
        source = DRIVER.replace("EXTRA", extra).replace("MORE", more)
        library = build(
            source,
            folder / "driver.so",
            *("-shared", "-O2", "-fvisibility=hidden", f"-Wl,--build-id=0x{BUILD_ID}", *flags),
        )
        listing = subprocess.run(
            ["nm", "--defined-only", library], capture_output=True, text=True, check=True
        ).stdout
        self.addresses = {
            name: int(address, 16) for address, _, name in map(str.split, listing.splitlines())
        }
        self.path = folder / "stripped.so"
        subprocess.run(["strip", "-o", self.path, library], check=True)

    @property
    def functions(self) -> Functions:
        return Functions(ElfFile(self.path))

    def named(self, *names: str) -> list[int]:
        return sorted(self.addresses[name] for name in names)


FLAGS = [
    ["-O2"],
    ["-O0"],
    ["-Wl,-z,lazy"],
    ["-fcf-protection=full", "-Wl,-z,ibtplt"],
    ["-fno-plt", "-Wl,-z,now"],
    ["-fno-plt", "-Wl,-z,now", "-fcf-protection=full"],
    ["-Wl,-z,norelro", "-Wl,--no-relax"],
    ["-mavx2", "-O3"],
    ["-Wl,-Bsymbolic"],
]


@pytest.mark.parametrize("flags", FLAGS, ids=" ".join)
def test_finds_the_method_and_what_it_calls(tmp_path: Path, flags: list[str]) -> None:
    driver = Driver(tmp_path, *flags)
    assert driver.functions.callers_of(f"{API}EnsureACL") == driver.named("getThing")
    assert driver.functions.callers_of("virDomainGetOtherEnsureACL") == driver.named("getOther")
    for caller in driver.named("getThing", "getOther"):
        assert driver.functions.called_by(caller, CALLS) == driver.named("gather")
    [get_thing] = driver.named("getThing")
    assert driver.functions.called_by(get_thing, "work") == driver.named("gather", "decoy")


@pytest.mark.parametrize("flags", FLAGS, ids=" ".join)
def test_what_a_function_calls(tmp_path: Path, flags: list[str]) -> None:
    driver = Driver(tmp_path, *flags)
    names = ("gather", "decoy", "getThing", CALLS)
    gather, decoy, get_thing, ask = (driver.addresses[name] for name in names)
    functions = driver.functions
    assert {(callee.address, callee.name) for callee in functions.callees(get_thing)} == {
        (None, f"{API}EnsureACL"),
        (gather, None),
        (decoy, None),
    }
    assert [(callee.address, callee.name) for callee in functions.callees(gather)] == [
        (ask, CALLS),
        (None, "work"),
    ]
    assert functions.uses(CALLS) < functions.uses("work")
    assert functions.uses("no_such_function") == 0


def test_packed_relocations(tmp_path: Path) -> None:
    driver = Driver(tmp_path, "-Wl,-z,pack-relative-relocs")
    if ".relr.dyn" not in ElfFile(driver.path).loaded_sections():
        pytest.skip("this linker does not pack relocations")
    assert driver.functions.callers_of(f"{API}EnsureACL") == driver.named("getThing")


INSTRUCTIONS = """
push %rbp; mov %rsp,%rbp; sub $0x18,%rsp; sub $0x12345,%rsp; endbr64; nopw 0(%rax,%rax,1)
mov $1,%eax; mov $1,%ax; mov $1,%al; movabs $0x1122334455667788,%r10; mov $-1,%rax
mov %fs:0x28,%rax; xor %fs:0x28,%rcx; movabs 0x1122334455667788,%eax; lea 8(%rip),%rdi
mov (%rsp),%eax; mov (%r12),%eax; mov (%r13),%eax; mov (%rbp),%eax; mov 0x1000(%rsp),%eax
mov (,%rax,8),%ecx; mov 4(%rax,%rbx,2),%ecx; mov 0x400(%r8,%r9,4),%ecx; mov (%r13,%r9,4),%ecx
movb $1,(%rax); movw $1,2(%rax); movl $1,4(%rax); movq $1,0x100(%rax); movl $1,8(%rip)
add $1,%al; add $0x100,%ax; add $0x100,%eax; add $0x100,%rax; cmpw $0x100,8(%rip); cmpl $1,(%rcx)
test $1,%al; test $1,%cl; testw $0x100,(%rcx); testl $0x100,(%rcx); testq $0x100,(%rcx); not %ecx
neg %cl; mul %rcx; idivl (%rsp); imul $3,%eax,%ecx; imul $0x300,%eax,%ecx; imul $0x300,%ax,%cx
imul %eax,%ecx; shl %eax; shl $3,%rax; sar %cl,%eax; shld $3,%eax,%ecx; bt $3,%eax; bts %eax,%ecx
push $1; push $0x100; pushw $0x100; pop %rax; popq 8(%rax); push 8(%rip); ret; ret $8; leave
call *%rax; call *8(%rip); notrack jmp *%rax; jmp *8(,%rax,8); movzbl %al,%eax; movslq %eax,%rdx
movsbl 4(%rax),%edx; sete %al; setne 8(%rip); cmovne %eax,%ecx; cmovg 8(%rsp),%r9; bswap %rax
rep stosq; repne scasb; rep movsb; lock cmpxchg %ecx,(%rdx); lock xadd %eax,(%rdx); xchg %rax,(%rdx)
lock incl 4(%rdx); cqto; cltq; cltd; cpuid; rdtsc; syscall; ud2; hlt; int3; int $3; mfence; pause
movaps %xmm0,(%rsp); movups 8(%rax),%xmm1; movdqa 8(%rip),%xmm2; movq %xmm0,%rax; movd %eax,%xmm1
pshufd $3,%xmm0,%xmm1; shufps $3,%xmm0,%xmm1; pinsrw $1,%eax,%xmm0; cmpltps %xmm0,%xmm1
psrldq $8,%xmm0; psllq $3,%xmm1; cvtsi2sd %rax,%xmm0; ucomisd 8(%rip),%xmm0; pshufb %xmm0,%xmm1
pcmpeqb %xmm0,%xmm1; palignr $3,%xmm0,%xmm1; pextrq $1,%xmm0,%rax; crc32b %al,%ecx; popcnt %eax,%ecx
flds (%rsp); fldt 16(%rsp); fxch; fstpt (%rsp); fildll 8(%rsp); tzcnt %eax,%ecx; prefetcht0 (%rax)
vmovdqu (%rax),%ymm0; vmovdqu %ymm8,(%r9); vpaddd %ymm8,%ymm9,%ymm10; vzeroupper; vzeroall
vpshufd $3,%ymm0,%ymm1; vpermq $3,%ymm8,%ymm1; vpbroadcastb %xmm0,%ymm1
vinserti128 $1,%xmm0,%ymm1,%ymm2
andn %eax,%ecx,%edx; shlx %eax,%ecx,%edx; rorx $3,%eax,%ecx; vpsrldq $3,%ymm9,%ymm8
vcmpltps %ymm0,%ymm1,%ymm2
vmovdqu64 64(%rax),%zmm0; vpaddd %zmm16,%zmm17,%zmm18; vpternlogd $3,%zmm0,%zmm1,%zmm2
vpermb %zmm0,%zmm1,%zmm2; vpsrlq $3,%zmm16,%zmm17; vmovdqu8 (%rax,%rbx,2),%ymm16; kmovw %k1,%eax
vpcmpeqb (%rax),%zmm1,%k1; nopw %cs:0(%rax,%rax,1); cmpxchg16b (%rdi)
"""


def test_instructions_are_told_apart(tmp_path: Path) -> None:
    """A label before each: where they stand is the assembler's word."""
    need("nm", "gcc")
    listed = INSTRUCTIONS.replace("\n", ";").strip("; ").split(";")
    source = "".join(f"at{n}: {text.strip()}\n" for n, text in enumerate(listed))
    library = tmp_path / "library.so"
    command = ["gcc", "-shared", "-nostdlib", "-x", "assembler", "-", "-o", str(library)]
    subprocess.run(command, input=source + "end: nop\n", text=True, check=True)
    listing = subprocess.run(["nm", library], capture_output=True, text=True, check=True).stdout
    labels = {name: int(at, 16) for at, _, name in map(str.split, listing.splitlines())}
    text = ElfFile(library).loaded_sections()[".text"]
    start = text.address
    boundaries = {labels[f"at{n}"] - start for n in range(len(listed))}
    end = labels["end"] - start
    assert instructions().fullmatch(text.data, 0, end)
    prefixes = {
        0x26,
        0x2E,
        0x36,
        0x3E,
        0x64,
        0x65,
        0x66,
        0x67,
        0xF0,
        0xF2,
        0xF3,
        *range(0x40, 0x50),
    }
    after_prefix = set()
    for at in range(end):
        if (at in boundaries or at in after_prefix) and text.data[at] in prefixes:
            after_prefix.add(at + 1)
        is_one = instructions().fullmatch(text.data, 0, at) is not None
        assert is_one == (at in boundaries or at in after_prefix), hex(at)


def test_a_second_caller_of_the_access_check_gives_two(tmp_path: Path) -> None:
    second = "STATIC int again(void *c, int n) { return virDomainGetThingEnsureACL(c) + n; }"
    driver = Driver(tmp_path, extra=second, more="again")
    assert driver.functions.callers_of(f"{API}EnsureACL") == driver.named("getThing", "again")


def test_what_is_not_imported_gives_none(tmp_path: Path) -> None:
    driver = Driver(tmp_path)
    assert driver.functions.callers_of("virDomainGetNothingEnsureACL") == []
    [get_thing] = driver.named("getThing")
    assert driver.functions.called_by(get_thing, "qemuMonitorGetNothing") == []
    assert driver.functions.called_by(driver.addresses["decoy"], CALLS) == []


def test_a_tail_call_is_a_call(tmp_path: Path) -> None:
    extra = """
    extern int virDomainTailEnsureACL(void *conn);
    STATIC int last(int n) { return work(n) + qemuMonitorGetThing(n); }
    STATIC int tail(void *c, int n) { return virDomainTailEnsureACL(c) ? -1 : last(n); }
    STATIC int tail2(void *c, int n) { return c ? 7 : last(n + 1); }
    STATIC int check(void *c, int n) { return n == 3 ? 1 : virDomainTailEnsureACL(c); }
    """
    driver = Driver(tmp_path, extra=extra, more="tail, tail2, check")
    assert driver.functions.callers_of("virDomainTailEnsureACL") == driver.named("tail", "check")
    for caller in driver.named("tail", "tail2"):
        assert driver.functions.called_by(caller, CALLS) == driver.named("last")


def test_an_exported_function_between_them(tmp_path: Path) -> None:
    extra = """
    EXPORT int between(int n) { return qemuMonitorGetThing(n) * 2; }
    STATIC int outer(void *c, int n) { return c ? -1 : between(n) + 1; }
    """
    driver = Driver(tmp_path, extra=extra, more="outer")
    [outer] = driver.named("outer")
    assert driver.functions.called_by(outer, CALLS) == driver.named("between")


def test_an_address_that_is_only_handed_on_is_no_sure_call(tmp_path: Path) -> None:
    extra = """
    extern int each(int (*function)(int), int n);
    EXPORT int handed(int n) { return qemuMonitorGetThing(n) * 2; }
    STATIC int outer(void *c, int n) { return c ? -1 : each(handed, n) + 1; }
    STATIC int both(void *c, int n) { return outer(c, n) + gather(n, &n) + each(handed, n); }
    """
    driver = Driver(tmp_path, "-fsemantic-interposition", extra=extra, more="outer, both")
    with pytest.raises(TargetError, match="not certain"):
        driver.functions.called_by(driver.addresses["outer"], CALLS)
    [both] = driver.named("both")
    assert driver.functions.called_by(both, CALLS) == driver.named("gather", "handed")


COLD = """
STATIC int unlucky(int n, int *out)
{
    int kept[4] = { work(n), work(n + 1), work(n + 2), work(n + 3) };
    if (__builtin_expect(kept[0] < kept[3], 0)) {
        virReportError(n);
        *out = qemuMonitorGetThing(kept[1]);
        virReportError(*out);
    }
    return kept[0] + kept[1] + kept[2] + *out;
}
STATIC int careful(void *c, int n) { int out = 0; return (c ? -1 : unlucky(n, &out)) + out; }
"""


def test_a_call_in_a_split_off_fragment_is_its_functions(tmp_path: Path) -> None:
    driver = Driver(tmp_path, extra=COLD, more="careful")
    assert "unlucky.cold" in driver.addresses, "the compiler split nothing off"
    [careful] = driver.named("careful")
    assert driver.functions.called_by(careful, CALLS) == driver.named("unlucky")


def test_a_fragment_of_the_caller_is_not_taken_for_a_function(tmp_path: Path) -> None:
    driver = Driver(tmp_path, extra=COLD, more="careful")
    with pytest.raises(TargetError, match="inlined"):
        driver.functions.called_by(driver.addresses["unlucky"], CALLS)


def test_what_may_be_function_or_fragment_is_refused(tmp_path: Path) -> None:
    extra = """
    STATIC int lonely(int n) { return qemuMonitorGetThing(n) + 1; }
    STATIC int outer(void *c, int n) { return c ? -1 : lonely(n); }
    """
    driver = Driver(tmp_path, extra=extra, more="outer")
    with pytest.raises(TargetError, match="may be a function or a fragment"):
        driver.functions.called_by(driver.addresses["outer"], CALLS)


def test_a_helper_that_checks_access_is_not_the_method(tmp_path: Path) -> None:
    extra = """
    extern int virDomainHelpedEnsureACL(void *conn);
    STATIC int helper(void *c) { return virDomainHelpedEnsureACL(c) + 1; }
    STATIC int helped(void *c, int n) { return helper(c) + n; }
    """
    driver = Driver(tmp_path, extra=extra, more="helped")
    with pytest.raises(TargetError, match="not the driver's method itself"):
        driver.functions.callers_of("virDomainHelpedEnsureACL")


def bytes_and_call(folder: Path, before: str, after: str) -> Driver:
    """A driver whose method has the bytes of a call of the check between others."""
    method = f"""
    STATIC int bytes(void *c, int n)
    {{
        __asm__ volatile(".byte {before}0xe8\\n"
                         ".reloc ., R_X86_64_PLT32, virDomainBytesEnsureACL - 4\\n"
                         ".byte 0, 0, 0, 0{after}" ::: "rax");
        return work(n);
    }}
    """
    return Driver(folder, "-Wl,--build-id=none", extra=method, more="bytes")


def test_bytes_that_look_like_a_call_are_none(tmp_path: Path) -> None:
    real = bytes_and_call(tmp_path / "real", "", "")
    assert real.functions.callers_of("virDomainBytesEnsureACL") == real.named("bytes")
    # mov $0x....e890, %rax
    immediate = bytes_and_call(tmp_path / "immediate", "0x48, 0xb8, 0x90, ", ", 0, 0")
    assert immediate.functions.callers_of("virDomainBytesEnsureACL") == []


def test_an_instruction_that_is_not_known_is_refused(tmp_path: Path) -> None:
    driver = bytes_and_call(tmp_path, "0x06, ", "")
    with pytest.raises(TargetError, match="unknown instructions"):
        driver.functions.callers_of("virDomainBytesEnsureACL")


def test_other_processors_and_files_without_the_table_are_refused(tmp_path: Path) -> None:
    need("objcopy")
    driver = Driver(tmp_path)
    without = tmp_path / "without.so"
    subprocess.run(
        ["objcopy", "--remove-section", ".eh_frame_hdr", driver.path, without], check=True
    )
    with pytest.raises(TargetError, match=r"no table of its functions"):
        Functions(ElfFile(without)).callers_of(f"{API}EnsureACL")
    foreign = bytearray(driver.path.read_bytes())
    foreign[18:20] = (183).to_bytes(2, "little")  # e_machine: EM_AARCH64
    without.write_bytes(foreign)
    with pytest.raises(TargetError, match="code for aarch64 is not understood"):
        Functions(ElfFile(without))


# What debug info of the same code says (Debian 12, libvirt 9.0.0-4+deb12u2).
INSTALLED = Path("/usr/lib/x86_64-linux-gnu/libvirt/connection-driver/libvirt_driver_qemu.so")
KNOWN = "3bf74c7e45cdb1958dafc1912cd8567d96f1194c"


def test_the_installed_driver() -> None:
    if not INSTALLED.exists():
        pytest.skip("no libvirt daemon is installed")
    elf = ElfFile(INSTALLED)
    if elf.build_id != KNOWN:
        pytest.skip("another build of libvirt is installed")
    functions = Functions(elf)
    assert functions.callers_of("virDomainGetBlockInfoEnsureACL") == [0xE0C30]
    assert functions.called_by(0xE0C30, "qemuMonitorGetAllBlockStatsInfo") == [0xD8B30]


def test_every_method_of_the_installed_driver_is_found() -> None:
    if not INSTALLED.exists():
        pytest.skip("no libvirt daemon is installed")
    need("nm")
    elf = ElfFile(INSTALLED)
    if elf.build_id != KNOWN:
        pytest.skip("another build of libvirt is installed")
    listing = subprocess.run(
        ["nm", "-D", "--undefined-only", INSTALLED], capture_output=True, text=True, check=True
    ).stdout
    imports = [line.split()[-1].split("@")[0] for line in listing.splitlines()]
    apis = [name[: -len("EnsureACL")] for name in imports if name.endswith("EnsureACL")]
    functions = Functions(elf)
    methods = [functions.callers_of(f"{api}EnsureACL") for api in apis]
    assert len(apis) == 217
    assert all(len(found) == 1 for found in methods)
    assert len({found[0] for found in methods}) == len(apis), "one method for two"


@pytest.mark.parametrize(
    ("code", "at"),
    [
        # cmpq $0,0x4218(%rdi); je; ret: the beginning of bdrv_set_dirty.
        ("4883bf1842000000 7401 90 c3", 8),
        ("f30f1efa 4883bf1842000000 7401 90 c3", 12),
        ("f30f1efa 55 c3", 4),
        ("55 c3", 0),
        # sub $8,%rsp moves the stack pointer; lea changes a register.
        ("f30f1efa 4883ec08 55 c3", 0),
        ("488d8718420000 c3", 0),
        # A jump back behind the entry: near, and short.
        ("f30f1efa 55 e9faffffff c3", 0),
        ("f30f1efa 55 ebfd", 0),
        # A displacement that only looks like a jump.
        ("f30f1efa 55 b8ebfb9090 c3", 4),
    ],
)
def test_where_a_probe_costs_little(code: str, at: int) -> None:
    assert cheap_entry(bytes.fromhex(code)) == at


# Each ends in its own way. The jump table is relative to its base, as GCC writes it.
ENDS = """
.text
.macro function name
.globl \\name
.type \\name, @function
\\name:
.cfi_startproc
.endm
.macro end name
.cfi_endproc
.size \\name, .-\\name
.endm

function plain
    mov $0xc3c3c3c3, %eax
    test %edi, %edi
    je 1f
plain_1: ret
1:  movabs $0xc3c3c3c3c3c3c3c3, %rax
plain_2: repz ret
end plain

function calls_last
    test %edi, %edi
    jne plain
calls_last_1: ret
end calls_last

function through_a_table
    lea table(%rip), %rdx
    movslq (%rdx,%rdi,4), %rax
    add %rdx, %rax
    notrack jmp *%rax
one: mov $1, %eax
through_a_table_1: ret
two: mov $2, %eax
through_a_table_2: ret
end through_a_table

function to_a_driver
    test %rdi, %rdi
    je 1f
    mov (%rdi), %rax
    jmp *16(%rax)
1:  ret
end to_a_driver

function to_another_file
    jmp elsewhere@PLT
end to_another_file

function hangs
1:  jmp 1b
end hangs

.section .rodata
table: .long one - table, two - table
"""


@pytest.mark.parametrize(
    ("function", "wanted"),
    [
        ("plain", ["plain_1", "plain_2"]),
        ("calls_last", ["calls_last_1", "plain_1", "plain_2"]),
        ("through_a_table", ["through_a_table_1", "through_a_table_2"]),
        ("to_a_driver", "a register or memory says where it jumps"),
        ("to_another_file", "a register or memory says where it jumps"),
        ("hangs", "0 ret instructions"),
    ],
)
def test_all_ends_of_a_function(tmp_path: Path, function: str, wanted: list[str] | str) -> None:
    need("gcc", "nm")
    source, library = tmp_path / "ends.s", tmp_path / "ends.so"
    source.write_text(ENDS)
    subprocess.run(["gcc", "-shared", "-nostdlib", str(source), "-o", str(library)], check=True)
    listed = subprocess.run(["nm", str(library)], check=True, capture_output=True, text=True).stdout
    at = {
        name: int(address, 16)
        for address, _, name in (line.split() for line in listed.splitlines() if line[0] != " ")
    }
    instructions_ = Instructions(ElfFile(library))
    if isinstance(wanted, str):
        with pytest.raises(Unavailable, match=wanted):
            instructions_.returns(at[function])
    else:
        assert instructions_.returns(at[function]) == sorted(at[name] for name in wanted)
