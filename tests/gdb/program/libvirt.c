#include "fake.h"

#include <stdarg.h>
#include <stdio.h>

/* Optimized, its last act is a jump: it returns when the driver's method does. */
KEPT int virDomainGetBlockInfo(virDomainPtr domain, const char *disk, virDomainBlockInfoPtr info,
                               unsigned int flags)
{
    return domain->conn->driver->domainGetBlockInfo(domain, disk, info, flags);
}

KEPT const char *virErrorMsg(virErrorNumber error, const char *info)
{
    switch (error) {
    case VIR_ERR_INVALID_ARG:
        return info ? "invalid argument: %s" : "invalid argument";
    case VIR_ERR_SYSTEM_ERROR:
        return info ? "%s" : "system error";
    default:
        return NULL;
    }
}

KEPT void virReportErrorHelper(int domcode, int errorcode, const char *filename,
                               const char *funcname, size_t linenr, const char *fmt, ...)
{
    char detail[256];
    va_list arguments;

    va_start(arguments, fmt);
    vsnprintf(detail, sizeof(detail), fmt, arguments);
    va_end(arguments);
    virErrorMsg(errorcode, detail);
}

KEPT void virReportSystemErrorFull(int domcode, int theerrno, const char *filename,
                                   const char *funcname, size_t linenr, const char *fmt, ...)
{
    char detail[256];
    va_list arguments;

    va_start(arguments, fmt);
    vsnprintf(detail, sizeof(detail), fmt, arguments);
    va_end(arguments);
    virErrorMsg(VIR_ERR_SYSTEM_ERROR, detail);
}

KEPT bool virTestValues(struct values *values, enum color color, bool yes, const char *text)
{
    return values->yes && color == BLUE && yes && text[0];
}

KEPT long virTestMany(int a, int b, int c, int d, int e, int f, int g, long h)
{
    return a + b + c + d + e + f + g + h;
}

KEPT int virTestScale(double factor, int count)
{
    return factor * count;
}

KEPT int virTestByValue(struct pair pair, int count)
{
    return pair.first + pair.second + count;
}

KEPT struct triple virTestTriple(int count)
{
    return (struct triple){count, count + 1, count + 2};
}

KEPT int virTestRecurse(int depth)
{
    int result = depth ? virTestRecurse(depth - 1) + 1 : 100;

    /* Else the compiler makes it a loop. */
    __asm__ volatile("" : "+r"(result));
    return result;
}

KEPT int virTestJumpInner(int number, void (*leave)(void))
{
    leave();
    return number + 1;
}

KEPT int virTestJump(int number, void (*leave)(void))
{
    return virTestJumpInner(number, leave) + 1;
}

KEPT int virTestHold(int depth, void (*hold)(void))
{
    int result = 0;

    if (depth)
        result = virTestHold(depth - 1, hold) + 1;
    else
        hold();
    __asm__ volatile("" : "+r"(result));
    return result;
}

/* The same without unwind table: nothing tells where it was called from. */
#if defined(__x86_64__)
__asm__(".pushsection .text\n"
        ".globl virTestHoldBare\n"
        ".type virTestHoldBare, @function\n"
        "virTestHoldBare: sub $24, %rsp\n"
        "call *%rdi\n"
        "add $24, %rsp\n"
        "ret\n"
        ".size virTestHoldBare, . - virTestHoldBare\n"
        ".popsection\n");
#endif

KEPT bool virTestAsk(unsigned long long owner)
{
    return owner != 0;
}
