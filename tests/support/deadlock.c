/* Two calls that lock two mutexes crosswise: for LD_PRELOAD into a libvirtd. */

#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stddef.h>

static pthread_mutex_t first = PTHREAD_MUTEX_INITIALIZER;
static pthread_mutex_t second = PTHREAD_MUTEX_INITIALIZER;
static atomic_int holders;

static void lock_both(pthread_mutex_t *one, pthread_mutex_t *other)
{
    pthread_mutex_lock(one);
    /* Until the other thread holds its first one, too. */
    atomic_fetch_add(&holders, 1);
    while (atomic_load(&holders) < 2)
        sched_yield();
    pthread_mutex_lock(other);
}

int virDomainGetTime(void *domain, long long *seconds, unsigned *nanoseconds, unsigned flags)
{
    lock_both(&first, &second);
    return -1;
}

char *virDomainGetHostname(void *domain, unsigned flags)
{
    lock_both(&second, &first);
    return NULL;
}
