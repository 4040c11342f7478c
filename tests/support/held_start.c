/* For LD_PRELOAD: a daemon that has gone into the background does nothing while a file exists. */
#include <pthread.h>
#include <unistd.h>

static int forks;

static void forked(void)
{
    /* Its parents are the first process, and a child of that which ends at once. */
    if (++forks == 2)
        while (access(HELD, F_OK) == 0)
            usleep(1000);
}

__attribute__((constructor)) static void begin(void)
{
    pthread_atfork(NULL, NULL, forked);
}
