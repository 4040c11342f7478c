/* Static probes as sys/sdt.h writes them; that header is in no package the tests need. */
#pragma once

#define PROBE_SEMAPHORE(name)                                             \
    unsigned short libvirt_##name##_semaphore                             \
        __attribute__((section(".probes"), used, visibility("hidden")))

/* Read again each time: only a tracer changes it. */
#define PROBE_ENABLED(name) (*(volatile unsigned short *)&libvirt_##name##_semaphore)

#define PROBE_NOTE(name, arguments)                                       \
    "990: nop\n"                                                          \
    ".pushsection .note.stapsdt,\"\",\"note\"\n"                          \
    ".balign 4\n"                                                         \
    ".4byte 992f-991f, 994f-993f, 3\n"                                    \
    "991: .asciz \"stapsdt\"\n"                                           \
    "992: .balign 4\n"                                                    \
    "993: .8byte 990b\n"                                                  \
    ".8byte _.stapsdt.base\n"                                             \
    ".8byte libvirt_" #name "_semaphore\n"                                \
    ".asciz \"libvirt\"\n"                                                \
    ".asciz \"" #name "\"\n"                                              \
    ".asciz \"" arguments "\"\n"                                          \
    "994: .balign 4\n"                                                    \
    ".popsection\n"                                                       \
    ".ifndef _.stapsdt.base\n"                                            \
    ".pushsection .stapsdt.base,\"aG\",\"progbits\",.stapsdt.base,comdat\n" \
    ".weak _.stapsdt.base\n"                                              \
    ".hidden _.stapsdt.base\n"                                            \
    "_.stapsdt.base: .space 1\n"                                          \
    ".size _.stapsdt.base, 1\n"                                           \
    ".popsection\n"                                                       \
    ".endif\n"

#define PROBE2(name, first, second) \
    __asm__ volatile(PROBE_NOTE(name, "8@%0 8@%1")::"r"(first), "r"(second))
#define PROBE3(name, first, second, third) \
    __asm__ volatile(PROBE_NOTE(name, "8@%0 8@%1 -4@%2")::"r"(first), "r"(second), "n"(third))
