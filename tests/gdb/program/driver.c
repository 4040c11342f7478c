#include "fake.h"

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "probe.h"

#ifndef GATHER
#define GATHER KEPT
#endif

typedef struct _qemuBlockStats {
    unsigned long long rd_req;
    unsigned long long rd_bytes;
    unsigned long long wr_req;
    unsigned long long wr_bytes;
    unsigned long long rd_total_times;
    unsigned long long wr_total_times;
    unsigned long long flush_req;
    unsigned long long flush_total_times;
    unsigned long long capacity;
    unsigned long long physical;
    unsigned long long wr_highest_offset;
    bool wr_highest_offset_valid;
    unsigned long long write_threshold;
} qemuBlockStats;

typedef struct _request {
    const char *reply;
    bool answered;
    struct _request *next;
} request;

/* Its own thread answers, the latest request first: answers cross each other. */
typedef struct _qemuMonitor {
    pthread_mutex_t lock;
    pthread_cond_t changed;
    request *requests;
} qemuMonitor;

typedef struct {
    const char *name;
} virQEMUDriver;

typedef struct {
    qemuMonitor *mon;
} virDomainObj;

typedef struct {
    unsigned long number;
} virJSONValue;

PROBE_SEMAPHORE(qemu_monitor_send_msg);
PROBE_SEMAPHORE(qemu_monitor_recv_reply);

static qemuMonitor monitors[2];
static virQEMUDriver qemu_driver = {"qemu"};
static unsigned long calls, messages;
/* Of the call that this thread is in; all of its values follow from it. */
static __thread unsigned long call_number;
/* How many bytes the next replies are padded with. */
unsigned long fakePadding;

unsigned long fakeCallNumber(void)
{
    return call_number;
}

unsigned int fakeSemaphores(void)
{
    return PROBE_ENABLED(qemu_monitor_send_msg) + PROBE_ENABLED(qemu_monitor_recv_reply);
}

static KEPT void qemuMonitorJSONIOProcessLine(qemuMonitor *mon, const char *text)
{
    if (PROBE_ENABLED(qemu_monitor_recv_reply))
        PROBE2(qemu_monitor_recv_reply, mon, text);
}

static void *answer(void *opaque)
{
    qemuMonitor *mon = opaque;

    pthread_mutex_lock(&mon->lock);
    for (;;) {
        request *next = mon->requests;

        if (!next) {
            pthread_cond_wait(&mon->changed, &mon->lock);
            continue;
        }
        mon->requests = next->next;
        qemuMonitorJSONIOProcessLine(mon, next->reply);
        next->answered = true;
        pthread_cond_broadcast(&mon->changed);
    }
    return NULL;
}

static KEPT int qemuMonitorSend(qemuMonitor *mon, const char *command)
{
    unsigned long id = __atomic_add_fetch(&messages, 1, __ATOMIC_SEQ_CST);
    size_t padding = fakePadding;
    char *reply = malloc(padding + 200);
    char text[200];
    request sent = {reply, false, NULL};
    int end;

    snprintf(text, sizeof(text), "{\"execute\":\"%s\",\"arguments\":{\"n\":%lu},\"id\":\"libvirt-%lu\"}",
             command, call_number, id);
    end = sprintf(reply, "{\"return\":[{\"n\":%lu}],\"padding\":\"", call_number);
    memset(reply + end, 'p', padding);
    sprintf(reply + end + padding, "\",\"id\":\"libvirt-%lu\"}", id);
    if (PROBE_ENABLED(qemu_monitor_send_msg))
        PROBE3(qemu_monitor_send_msg, mon, text, 17);
    pthread_mutex_lock(&mon->lock);
    sent.next = mon->requests;
    mon->requests = &sent;
    pthread_cond_broadcast(&mon->changed);
    while (!sent.answered)
        pthread_cond_wait(&mon->changed, &mon->lock);
    pthread_mutex_unlock(&mon->lock);
    free(reply);
    return 0;
}

KEPT virJSONValue *qemuMonitorJSONQueryBlockstats(qemuMonitor *mon)
{
    static virJSONValue value;

    return qemuMonitorSend(mon, "query-blockstats") < 0 ? NULL : &value;
}

KEPT int qemuMonitorGetAllBlockStatsInfo(qemuMonitor *mon)
{
    return qemuMonitorJSONQueryBlockstats(mon) ? 3 : -1;
}

KEPT int qemuMonitorBlockStatsUpdateCapacityBlockdev(qemuMonitor *mon)
{
    return qemuMonitorSend(mon, "query-named-block-nodes");
}

static GATHER int qemuDomainBlocksStatsGather(virQEMUDriver *driver, virDomainObj *vm,
                                              const char *path, bool capacity,
                                              qemuBlockStats **retstats)
{
    qemuBlockStats *stats;
    unsigned long n = call_number;

    if (strcmp(path, "missing") == 0) {
        virReportErrorHelper(10, VIR_ERR_INVALID_ARG, __FILE__, __func__, __LINE__,
                             "invalid path %s not assigned to domain", path);
        return -1;
    }
    if (strcmp(path, "unreadable") == 0) {
        virReportSystemErrorFull(10, 13, __FILE__, __func__, __LINE__, "cannot stat %s", path);
        return -1;
    }
    if (strcmp(path, "exit") == 0)
        _exit(9);
    if (qemuMonitorGetAllBlockStatsInfo(vm->mon) < 0)
        return -1;
    if (capacity && qemuMonitorBlockStatsUpdateCapacityBlockdev(vm->mon) < 0)
        return -1;
    stats = calloc(1, sizeof(*stats));
    stats->rd_req = n * 100 + 1;
    stats->rd_bytes = n * 100 + 2;
    stats->wr_req = n * 100 + 3;
    stats->wr_bytes = n * 100 + 4;
    stats->rd_total_times = n * 100 + 5;
    stats->wr_total_times = n * 100 + 6;
    stats->flush_req = n * 100 + 7;
    stats->flush_total_times = n * 100 + 8;
    stats->capacity = n * 1000 + 1;
    stats->physical = n * 1000 + 3;
    stats->wr_highest_offset = 0xffffffffffffffffULL - n;
    stats->wr_highest_offset_valid = n & 1;
    stats->write_threshold = n * 100 + 9;
    *retstats = stats;
    return 0;
}

static KEPT int qemuDomainGetBlockInfo(virDomainPtr dom, const char *path,
                                       virDomainBlockInfoPtr info, unsigned int flags)
{
    virDomainObj vm = {&monitors[dom->id & 1]};
    qemuBlockStats *stats = NULL;

    call_number = __atomic_add_fetch(&calls, 1, __ATOMIC_SEQ_CST);
    if (qemuDomainBlocksStatsGather(&qemu_driver, &vm, path, true, &stats) < 0)
        return -1;
    info->capacity = stats->capacity;
    info->allocation = call_number * 1000 + 2;
    info->physical = stats->physical;
    free(stats);
    return 0;
}

virHypervisorDriver fakeDriver = {qemuDomainGetBlockInfo};

static pthread_t threads[2];

void fakeStart(void)
{
    for (int i = 0; i < 2; i++) {
        pthread_mutex_init(&monitors[i].lock, NULL);
        pthread_cond_init(&monitors[i].changed, NULL);
        pthread_create(&threads[i], NULL, answer, &monitors[i]);
    }
}

/* So that the module can be unloaded. */
void fakeStop(void)
{
    for (int i = 0; i < 2; i++) {
        pthread_cancel(threads[i]);
        pthread_join(threads[i], NULL);
    }
}
