/* A call that computes and never ends: for LD_PRELOAD into a libvirtd. */

static volatile unsigned long long turns;

__attribute__((noinline)) void spin(void)
{
    for (;;)
        turns++;
}

__attribute__((noinline)) int spin_for_call(void)
{
    spin();
    return -1;
}

int virDomainGetTime(void *domain, long long *seconds, unsigned *nanoseconds, unsigned flags)
{
    return spin_for_call() + 1;
}
