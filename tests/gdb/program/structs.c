/* Structs named as libvirt's, for the pretty-printers; GDB stops it in ready(). */
#include <stdbool.h>
#include <stddef.h>

typedef struct _qemuBlockStats qemuBlockStats;
typedef qemuBlockStats *qemuBlockStatsPtr;
struct _qemuBlockStats {
#ifdef GOBJECT
    struct {
        void *klass;
        unsigned int references;
        void *data;
    } parent;
#endif
    unsigned long long rd_req;
    unsigned long long rd_bytes;
    unsigned long long rd_total_times;
    unsigned long long capacity;
    unsigned long long physical;
    unsigned long long wr_highest_offset;
    bool wr_highest_offset_valid;
};

typedef enum { VIR_STORAGE_TYPE_NONE, VIR_STORAGE_TYPE_FILE } virStorageType;
typedef enum { VIR_STORAGE_FILE_NONE, VIR_STORAGE_FILE_RAW, VIR_STORAGE_FILE_QCOW2 } virStorageFileFormat;

typedef struct _virStorageSource virStorageSource;
typedef virStorageSource *virStorageSourcePtr;
struct _virStorageSource {
    virStorageType type;
    char *path;
    int format;
    unsigned long long capacity;
    virStorageSourcePtr backingStore;
};

typedef struct _virDomainDiskDef {
    virStorageSource *src;
    char *dst;
} virDomainDiskDef;

typedef struct {
    int id;
    char *name;
    size_t ndisks;
    virDomainDiskDef **disks;
} virDomainDef;

/* As libvirt had it once: without a tag. */
typedef struct {
    int pid;
    virDomainDef *def;
} virDomainObj;

typedef struct {
    int pid;
} other;

static virStorageFileFormat unused = VIR_STORAGE_FILE_QCOW2;
static virStorageSource base = {VIR_STORAGE_TYPE_FILE, "/base", VIR_STORAGE_FILE_RAW, 512, NULL};
static virStorageSource top = {VIR_STORAGE_TYPE_FILE, "/top", VIR_STORAGE_FILE_QCOW2, 2147483648, &base};
static virStorageSource wild = {VIR_STORAGE_TYPE_FILE, (char *)16, 77, 0, (virStorageSource *)16};
static virStorageSource circle[3], longest[300];
static virDomainDiskDef vda = {&top, "vda"}, vdb = {NULL, "vdb"}, vdc = {circle, "vdc"};
static virDomainDiskDef *disks[100] = {&vda, &vdb, &vdc};
static virDomainDef definition = {4, "vm\"1", 3, disks};
static virDomainObj domain = {77, &definition}, busy, broken = {78, (virDomainDef *)16};
static virDomainDef many = {5, "many", 100, disks};
static other none = {7};
static qemuBlockStats stats = {
    .rd_req = 712,
    .rd_bytes = 17435136,
    .rd_total_times = 527027278,
    .capacity = 2147483648,
    .physical = 4096,
    .wr_highest_offset = 32870912,
    .wr_highest_offset_valid = true,
};
static const qemuBlockStatsPtr its_pointer = &stats;

__attribute__((noinline)) static int ready(qemuBlockStats *first, virStorageSource *source)
{
    return unused + domain.pid + broken.pid + none.pid + (first == its_pointer) + source->format;
}

int main(void)
{
    busy.def = &many;
    for (int i = 0; i < 3; i++) {
        circle[i].type = VIR_STORAGE_TYPE_FILE;
        circle[i].path = "/circle";
        circle[i].backingStore = &circle[(i + 1) % 3];
    }
    for (int i = 0; i < 299; i++)
        longest[i].backingStore = &longest[i + 1];
    for (int i = 3; i < 100; i++)
        disks[i] = &vdb;
    return ready(&stats, &wild) & 0;
}
