/*
 * Threads whose stacks lie side by side in one mapping, without anything between them, as those of
 * glibc 2.42 do but for pages that no mapping tells.
 *
 * Prints a line for each thread once all of them stand: its id, where its stack begins and where it
 * ends. Ends with its standard input.
 *
 * Every thread is in a function whose frame has no fixed size, called directly or by a pointer.
 */
#define _GNU_SOURCE
#include <poll.h>
#include <pthread.h>
#include <semaphore.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#define THREADS 4
#define SIZE (128 * 1024)

static int never[2];
static sem_t standing;
static volatile int sink;
static pid_t tids[THREADS];

/* Only rbp says where its frame is, and poll saves no rbp. */
__attribute__((noinline, noclone)) void sized(int count)
{
    struct pollfd fds[count];

    memset(fds, 0, sizeof(fds));
    fds[0].fd = never[0];
    fds[0].events = POLLIN;
    sem_post(&standing);
    sink += poll(fds, 1, -1);
    sink += fds[0].revents;
}

static void *stand(void *arg)
{
    long number = (long)arg;
    void (*pointer)(int) = sized;

    /* Or the compiler calls the only function that it can lead to. */
    __asm__ volatile("" : "+r"(pointer));
    tids[number] = gettid();
    if (number % 2 == 0)
        pointer(3);
    else
        sized(3);
    sink++;
    return arg;
}

int main(void)
{
    char *area = mmap(NULL, THREADS * SIZE, PROT_READ | PROT_WRITE,
                      MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    pthread_attr_t attributes;
    pthread_t thread;
    char byte;
    long i;

    if (area == MAP_FAILED || pipe(never) < 0)
        return 1;
    sem_init(&standing, 0, 0);
    pthread_attr_init(&attributes);
    for (i = 0; i < THREADS; i++) {
        pthread_attr_setstack(&attributes, area + i * SIZE, SIZE);
        pthread_create(&thread, &attributes, stand, (void *)i);
    }
    for (i = 0; i < THREADS; i++)
        sem_wait(&standing);
    for (i = 0; i < THREADS; i++)
        printf("%d %lu %lu\n", tids[i], (unsigned long)(area + i * SIZE),
               (unsigned long)(area + (i + 1) * SIZE));
    puts("ready");
    fflush(stdout);
    return read(0, &byte, 1) != 0;
}
