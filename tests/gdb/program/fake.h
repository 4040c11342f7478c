/* What the tests' stand-in for libvirt shares: structs and functions named as libvirt's. */
#pragma once

#include <stdbool.h>
#include <stddef.h>

/* Out of line, with all its arguments where the ABI says. */
#define KEPT __attribute__((noipa))

typedef struct _virConnect virConnect;
typedef virConnect *virConnectPtr;
typedef struct _virDomain virDomain;
typedef virDomain *virDomainPtr;
typedef struct _virDomainBlockInfo virDomainBlockInfo;
typedef virDomainBlockInfo *virDomainBlockInfoPtr;

struct _virDomain {
#if defined(OLD_OBJECT)
    unsigned int magic;
    int refs;
    void *klass;
    virConnectPtr conn;
    char *name;
    int id;
    unsigned char uuid[16];
#elif defined(STRANGE_OBJECT)
    int id;
    unsigned char uuid[16];
    char *name;
    virConnectPtr conn;
#else
    void *g_class;
    unsigned int ref_count;
    void *qdata;
    virConnectPtr conn;
    char *name;
    int id;
    unsigned char uuid[16];
#endif
};

struct _virDomainBlockInfo {
    unsigned long long capacity;
    unsigned long long allocation;
    unsigned long long physical;
};

typedef struct {
    int (*domainGetBlockInfo)(virDomainPtr, const char *, virDomainBlockInfoPtr, unsigned int);
} virHypervisorDriver;

struct _virConnect {
    virHypervisorDriver *driver;
};

typedef enum { VIR_ERR_OK, VIR_ERR_INVALID_ARG = 8, VIR_ERR_SYSTEM_ERROR = 38 } virErrorNumber;

int virDomainGetBlockInfo(virDomainPtr domain, const char *disk, virDomainBlockInfoPtr info,
                          unsigned int flags);
void virReportErrorHelper(int domcode, int errorcode, const char *filename, const char *funcname,
                          size_t linenr, const char *fmt, ...);
void virReportSystemErrorFull(int domcode, int theerrno, const char *filename,
                              const char *funcname, size_t linenr, const char *fmt, ...);
const char *virErrorMsg(virErrorNumber error, const char *info);

/* libvirt has none of these: the tests trace them with recipes of their own. */
enum color { RED = -1, GREEN = 0, BLUE = 5 };

struct values {
    enum color color;
    bool yes;
    signed char small;
    int numbers[4];
    struct {
        long long number;
        const char *text;
    } nested;
    unsigned int low : 3;
    unsigned int high : 5;
    double real;
    const char *text;
    const char *latin1;
    const char *at_page_end;
    const char *page_long;
    const char *null;
    const char *wild;
    struct values *next;
};

struct triple {
    long first, second, third;
};

struct pair {
    long first, second;
};

bool virTestValues(struct values *values, enum color color, bool yes, const char *text);
long virTestMany(int a, int b, int c, int d, int e, int f, int g, long h);
int virTestScale(double factor, int count);
int virTestByValue(struct pair pair, int count);
struct triple virTestTriple(int count);
int virTestRecurse(int depth);
int virTestJump(int number, void (*leave)(void));
int virTestJumpInner(int number, void (*leave)(void));
int virTestHold(int depth, void (*hold)(void));
int virTestHoldBare(void (*hold)(void));
bool virTestAsk(unsigned long long owner);
