/* Does what standard input says, a command a line; answers on standard output, ends with ".".
 *
 *   call DOMAIN DISK [TIMES]   log of each call, see log_call()
 *   made DOMAIN DISK           as call, but from code that is in no file
 *   threads THREADS TIMES      domain vmN on thread N, all at once
 *   values | many | recurse DEPTH | jump
 *   hold DEPTH                 a thread waits so deep (-1: where no table tells its caller)
 *                              while it is asked for, and once it has ended; its frames
 *   fork                       a child makes a call; how it ended
 *   exec                       begins anew, as another program would
 *   reload                     the driver is unloaded, and loaded again
 *   pad BYTES                  every reply from now on is that much longer
 *   signals                    how many came of USR1, CHLD and INT
 *   semaphores                 of the static probes, added up
 *   exit STATUS
 */
#define _GNU_SOURCE
#include "fake.h"

#include <dlfcn.h>
#include <errno.h>
#include <execinfo.h>
#include <pthread.h>
#include <semaphore.h>
#include <setjmp.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

static virHypervisorDriver *driver;
static unsigned long (*call_number)(void);
static unsigned int (*semaphores)(void);
static unsigned long *padding;
static char **arguments;
static void *module;
static volatile sig_atomic_t signals[64];

static void count(int number)
{
    signals[number]++;
}

static void make_domain(virDomain *domain, virConnect *conn, char *name, int id)
{
    memset(domain, 0, sizeof(*domain));
    domain->conn = conn;
    domain->name = name;
    domain->id = id;
    memset(domain->uuid, 0xab, sizeof(domain->uuid));
#if defined(OLD_OBJECT)
    domain->magic = 0xCAFE0001;
    domain->refs = 1;
    domain->klass = conn;
#elif !defined(STRANGE_OBJECT)
    domain->g_class = conn;
    domain->ref_count = 1;
#endif
}

/* tid domain disk result capacity allocation physical call-number */
static void log_call(const char *name, const char *disk, int result, virDomainBlockInfo *info)
{
    printf("%ld %s %s %d %llu %llu %llu %lu\n", syscall(SYS_gettid), name, disk, result,
           info->capacity, info->allocation, info->physical, call_number());
}

static KEPT int call(const char *name, int id, const char *disk, int times)
{
    virConnect conn = {driver};
    virDomain domain;
    int failed = 0;

    make_domain(&domain, &conn, (char *)name, id);
    for (int i = 0; i < times; i++) {
        virDomainBlockInfo info = {0};
        int result = virDomainGetBlockInfo(&domain, disk, &info, 7);

        log_call(name, disk, result, &info);
        failed += result < 0;
    }
    return failed;
}

/* The arguments moved up by one, and a call of the first: as a compiler at run time makes it. */
static const unsigned char passing_on[] = {
    0x48, 0x89, 0xf8,       /* mov %rdi,%rax */
    0x48, 0x89, 0xf7,       /* mov %rsi,%rdi */
    0x48, 0x89, 0xd6,       /* mov %rdx,%rsi */
    0x48, 0x89, 0xca,       /* mov %rcx,%rdx */
    0x44, 0x89, 0xc1,       /* mov %r8d,%ecx */
    0x48, 0x83, 0xec, 0x08, /* sub $8,%rsp */
    0xff, 0xd0,             /* call *%rax */
    0x48, 0x83, 0xc4, 0x08, /* add $8,%rsp */
    0xc3,                   /* ret */
};

static void call_from_made_code(const char *name, const char *disk)
{
    int (*made)(void *, virDomain *, const char *, virDomainBlockInfo *, unsigned int) =
        mmap(NULL, sizeof(passing_on), PROT_READ | PROT_WRITE | PROT_EXEC,
             MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    virConnect conn = {driver};
    virDomain domain;
    virDomainBlockInfo info = {0};

    make_domain(&domain, &conn, (char *)name, 1);
    memcpy(made, passing_on, sizeof(passing_on));
    log_call(name, disk, made(virDomainGetBlockInfo, &domain, disk, &info, 7), &info);
    munmap(made, sizeof(passing_on));
}

struct thread {
    pthread_t thread;
    int number;
    int times;
};

static void *run_thread(void *opaque)
{
    struct thread *thread = opaque;
    char name[20];
    char disk[20];

    sprintf(name, "vm%d", thread->number);
    sprintf(disk, "vd%c", 'a' + thread->number);
    call(name, thread->number, disk, thread->times);
    return NULL;
}

static void run_threads(int number, int times)
{
    struct thread threads[number];

    for (int i = 0; i < number; i++) {
        threads[i].number = i;
        threads[i].times = times;
        pthread_create(&threads[i].thread, NULL, run_thread, &threads[i]);
    }
    for (int i = 0; i < number; i++)
        pthread_join(threads[i].thread, NULL);
}

static void values(void)
{
    size_t page = sysconf(_SC_PAGESIZE);
    char *end = mmap(NULL, 2 * page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    struct values next = {.text = "next"};
    struct values all = {
        .color = RED,
        .yes = true,
        .small = -3,
        .numbers = {1, -2, 3, -4},
        .nested = {-5000000000LL, "inside"},
        .low = 5,
        .high = 17,
        .real = 0.5,
        .text = "plain",
        .latin1 = "caf\xe9",
        .wild = (const char *)0x10,
        .next = &next,
    };

    munmap(end + page, page);
    memcpy(end + page - 8, "at end!", 8);
    all.at_page_end = end + page - 8;
    /* A page long: it reads on into at_page_end, and no further. */
    memset(end, 'e', page - 8);
    all.page_long = end;
    printf("%d\n", virTestValues(&all, BLUE, true, "grüße"));
    /* No NUL before the mapping ends. */
    memset(end + page - 8, 'x', 8);
    all.text = NULL;
    all.next = NULL;
    printf("%d\n", virTestValues(&all, RED, false, "again"));
    munmap(end, page);
}

static void many(void)
{
    struct pair pair = {1000, 2000};
    struct triple triple;

    printf("%ld\n", virTestMany(1, 2, 3, 4, 5, 6, -7, 8000000000L));
    printf("%d\n", virTestScale(2.5, 42));
    printf("%d\n", virTestByValue(pair, 43));
    triple = virTestTriple(44);
    printf("%ld %ld %ld\n", triple.first, triple.second, triple.third);
}

static jmp_buf outside;

static void leap(void)
{
    longjmp(outside, 1);
}

static void stay(void)
{
}

/* The same call again and again: every second one is left by longjmp. */
static KEPT void jump(void)
{
    for (volatile int i = 0; i < 4; i++) {
        if (setjmp(outside) == 0)
            printf("%d\n", virTestJump(i * 10, i % 2 ? stay : leap));
        else
            printf("left\n");
    }
}

static sem_t held, let_go;
static unsigned long long owner;
static void *frames[200];
static int frame_count;

static KEPT void hold(void)
{
    frame_count = backtrace(frames, 200);
    owner = syscall(SYS_gettid);
    sem_post(&held);
    sem_wait(&let_go);
    __asm__ volatile("");
}

static void *run_holder(void *opaque)
{
    int depth = *(int *)opaque;

    if (depth < 0)
        virTestHoldBare(hold);
    else
        virTestHold(depth, hold);
    return NULL;
}

/* Once it has said so, the thread still has to begin to wait: its frames are others till then. */
static void until_asleep(unsigned long long tid)
{
    char path[64], state = 0;

    snprintf(path, sizeof(path), "/proc/self/task/%llu/stat", tid);
    while (state != 'S') {
        FILE *stat = fopen(path, "r");

        fscanf(stat, "%*d (%*[^)]) %c", &state);
        fclose(stat);
        sched_yield();
    }
}

/* Prints the frames that the waiting thread found by itself, from its first caller on. */
static void hold_and_ask(int depth)
{
    pthread_t holder;

    sem_init(&held, 0, 0);
    sem_init(&let_go, 0, 0);
    virTestAsk(0);
    pthread_create(&holder, NULL, run_holder, &depth);
    sem_wait(&held);
    until_asleep(owner);
    virTestAsk(owner);
    sem_post(&let_go);
    pthread_join(holder, NULL);
    virTestAsk(owner);
    for (int i = 1; i < frame_count; i++) {
        Dl_info found;
        char *file;

        dladdr(frames[i], &found);
        /* Not by the link that it was loaded by. */
        file = realpath(found.dli_fname, NULL);
        printf("%s+%#lx\n", strrchr(file, '/') + 1,
               (unsigned long)((char *)frames[i] - (char *)found.dli_fbase));
    }
}

static void in_child(void)
{
    int status;
    pid_t child;

    fflush(stdout);
    child = fork();
    if (child == 0) {
        virConnect conn = {driver};
        virDomain domain;
        virDomainBlockInfo info;

        make_domain(&domain, &conn, "child", 1);
        /* It fails before it needs the monitor, whose thread is not in this process. */
        _exit(virDomainGetBlockInfo(&domain, "missing", &info, 0) == -1 ? 0 : 1);
    }
    waitpid(child, &status, 0);
    if (WIFSIGNALED(status))
        printf("signal %d\n", WTERMSIG(status));
    else
        printf("status %d\n", WEXITSTATUS(status));
}

static int load(void)
{
    void (*start)(void);

    module = dlopen(arguments[0], RTLD_NOW);
    if (!module) {
        fprintf(stderr, "%s\n", dlerror());
        return -1;
    }
    driver = dlsym(module, "fakeDriver");
    call_number = dlsym(module, "fakeCallNumber");
    semaphores = dlsym(module, "fakeSemaphores");
    padding = dlsym(module, "fakePadding");
    start = dlsym(module, "fakeStart");
    start();
    return 0;
}

static int reload(void)
{
    void (*stop)(void) = dlsym(module, "fakeStop");

    stop();
    return dlclose(module) || load();
}

static void obey(const char *line)
{
    char first[64];
    char second[64];
    int number, times = 1;

    if (sscanf(line, "call %63s %63s %d", first, second, &times) >= 2)
        call(first, 1, second, times);
    else if (sscanf(line, "made %63s %63s", first, second) == 2)
        call_from_made_code(first, second);
    else if (sscanf(line, "threads %d %d", &number, &times) == 2)
        run_threads(number, times);
    else if (strcmp(line, "values\n") == 0)
        values();
    else if (strcmp(line, "many\n") == 0)
        many();
    else if (sscanf(line, "recurse %d", &number) == 1)
        printf("%d\n", virTestRecurse(number));
    else if (strcmp(line, "jump\n") == 0)
        jump();
    else if (sscanf(line, "hold %d", &number) == 1)
        hold_and_ask(number);
    else if (strcmp(line, "fork\n") == 0)
        in_child();
    else if (strcmp(line, "exec\n") == 0)
        execl("/proc/self/exe", program_invocation_name, arguments[0], NULL);
    else if (strcmp(line, "reload\n") == 0)
        printf("%d\n", reload());
    else if (sscanf(line, "pad %d", &number) == 1)
        *padding = number;
    else if (strcmp(line, "signals\n") == 0)
        printf("%d %d %d\n", signals[SIGUSR1], signals[SIGCHLD], signals[SIGINT]);
    else if (strcmp(line, "semaphores\n") == 0)
        printf("%u\n", semaphores());
    else if (sscanf(line, "exit %d", &number) == 1)
        exit(number);
    else
        printf("no such command\n");
}

int main(int argc, char **argv)
{
    struct sigaction action = {.sa_handler = count, .sa_flags = SA_RESTART};
    char line[256];

    /* Of all that it was started with the last is the driver. */
    arguments = argv + argc - 1;
    if (load() < 0)
        return 1;
    sigaction(SIGUSR1, &action, NULL);
    sigaction(SIGCHLD, &action, NULL);
    sigaction(SIGINT, &action, NULL);
    printf(".\n");
    fflush(stdout);
    while (fgets(line, sizeof(line), stdin)) {
        obey(line);
        printf(".\n");
        fflush(stdout);
    }
    return 0;
}
