/*
 * Threads that stand still in different ways, for tests of backtraces without GDB.
 *
 *     threads [moving|twice]
 *
 * Prints "ready" once every thread stands, and ends with its standard input. `moving` adds a
 * thread that waits in two places by turns, and one that computes; `twice` one that is twice in
 * the function whose frame has no fixed size.
 */
#define _GNU_SOURCE
#include <poll.h>
#include <pthread.h>
#include <semaphore.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#define TWICE 64

static int never[2];
static pthread_mutex_t held = PTHREAD_MUTEX_INITIALIZER;
static volatile long sink;
static sem_t standing;

__attribute__((noinline, used)) static void stand(void)
{
    char byte;

    sem_post(&standing);
    sink += read(never[0], &byte, 1);
}

/*
 * Its frame is rsp + 32 and its rbx is saved, as expressions with most operations that there are
 * say it: with a shift, a load of the 0 on its stack, and much that adds 0.
 */
void expressed(void);
asm("    .text\n"
    "    .type expressed, @function\n"
    "expressed:\n"
    "    .cfi_startproc\n"
    "    sub $24, %rsp\n"
    "    .cfi_escape 0x0f, 0x2a, 0x77, 0x00, 0x08, 0x10, 0x31, 0x24, 0x22, 0x09, "
    "0xff, 0x1a, 0x11, 0x00, 0x21, 0x30, 0x27, 0x12, 0x1a, 0x30, "
    "0x1c, 0x0a, 0x00, 0x00, 0x22, 0x23, 0x00, 0x33, 0x32, 0x2a, "
    "0x31, 0x1c, 0x22, 0x08, 0x04, 0x32, 0x25, 0x31, 0x1c, 0x22, "
    "0x77, 0x08, 0x06, 0x22\n"
    "    mov %rbx, 16(%rsp)\n"
    "    .cfi_escape 0x10, 3, 2, 0x40, 0x1c\n"
    "    .cfi_escape 0x16, 12, 2, 0x7c, 0x00\n"
    "    movq $0, 8(%rsp)\n"
    "    mov $12345, %rbx\n"
    "    call stand\n"
    "    mov 16(%rsp), %rbx\n"
    "    add $24, %rsp\n"
    "    .cfi_def_cfa rsp, 8\n"
    "    .cfi_restore rbx\n"
    "    ret\n"
    "    .cfi_endproc\n");

static void *in_expressed(void *arg)
{
    expressed();
    return arg;
}

/* Keeps values in registers across the call, which inner frames have to save. */
static __attribute__((noinline)) long deep(long depth, long a, long b, long c)
{
    long result;

    if (depth == 0) {
        stand();
        return a;
    }
    result = deep(depth - 1, a + 1, b * 3, c ^ depth);
    /* Else the compiler makes a loop of it. */
    asm volatile("" : : "r"(&result) : "memory");
    return result + a * b + c + depth;
}

static void *in_deep(void *arg)
{
    sink += deep(20, 1, 2, (long)arg);
    return NULL;
}

/* Its frame has no fixed size: only rbp says where it is, and poll saves no rbp. */
__attribute__((noinline)) void sized(int count)
{
    struct pollfd fds[count];

    memset(fds, 0, sizeof(fds));
    if (count == TWICE)
        sized(count - 1);
    fds[0].fd = never[0];
    fds[0].events = POLLIN;
    sem_post(&standing);
    sink += poll(fds, 1, -1);
    sink += fds[0].revents;
}

static void *in_sized(void *arg)
{
    sized((int)(long)arg);
    return NULL;
}

static void *in_sized_twice(void *arg)
{
    sized(TWICE);
    return arg;
}

static void on_signal(int number)
{
    sink += number;
    stand();
}

static void *in_handler(void *arg)
{
    sink += (long)arg;
    pthread_kill(pthread_self(), SIGUSR1);
    return NULL;
}

static void *at_mutex(void *arg)
{
    sem_post(&standing);
    pthread_mutex_lock(&held);
    return arg;
}

static void rest(void)
{
    struct timespec shortly = {.tv_nsec = 3000000};

    nanosleep(&shortly, NULL);
}

__attribute__((noinline)) void shallow(void)
{
    rest();
    sink++;
}

__attribute__((noinline, noclone)) void deeper(int depth)
{
    char room[128];

    memset(room, depth, sizeof(room));
    if (depth > 0)
        deeper(depth - 1);
    else
        rest();
    asm volatile("" : : "r"(room) : "memory");
}

static void *moving(void *arg)
{
    for (;;) {
        shallow();
        deeper(5);
    }
    return arg;
}

static void *computing(void *arg)
{
    for (;;)
        sink++;
    return arg;
}

int main(int argc, char **argv)
{
    void *(*still[])(void *) = {in_deep, in_sized, in_handler, at_mutex, in_expressed};
    struct sigaction action = {.sa_handler = on_signal};
    pthread_t thread;
    char byte;
    unsigned i;

    if (pipe(never) < 0)
        return 1;
    sem_init(&standing, 0, 0);
    sigaction(SIGUSR1, &action, NULL);
    pthread_mutex_lock(&held);
    for (i = 0; i < sizeof(still) / sizeof(*still); i++)
        pthread_create(&thread, NULL, still[i], (void *)(long)(i + 3));
    for (i = 0; i < sizeof(still) / sizeof(*still); i++)
        sem_wait(&standing);
    if (argc > 1 && strcmp(argv[1], "moving") == 0) {
        pthread_create(&thread, NULL, moving, NULL);
        pthread_setname_np(thread, "moving");
        pthread_create(&thread, NULL, computing, NULL);
        pthread_setname_np(thread, "computing");
    }
    if (argc > 1 && strcmp(argv[1], "twice") == 0) {
        pthread_create(&thread, NULL, in_sized_twice, NULL);
        pthread_setname_np(thread, "twice");
        sem_wait(&standing);
    }
    puts("ready");
    fflush(stdout);
    return read(0, &byte, 1) != 0;
}
