/* Serves requests in coroutines of one thread. Each request waits for the others in the middle of
 * a function, as QEMU's block layer does: its thread leaves that stack for another and comes back.
 *
 * Does what standard input asks, a command a line; answers on standard output, ends with ".".
 *
 *   serve FIRST SECOND   two requests, in this order, on stacks 0 to 3; 3 has the highest address
 *   signal               one request on the thread's own stack, one on the alternate signal stack
 */
#define _GNU_SOURCE
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <ucontext.h>
#include <unistd.h>

#define STACKS 4
#define STACK_SIZE (64 * 1024)
/* The compiler knows nothing of such a function where it is called. */
#define OPAQUE __attribute__((noipa))

struct request {
    int number;
    const char *name;
};

static ucontext_t main_context, contexts[STACKS];
static int current = -1;
static volatile int waited;

static void yield_to_main(void)
{
    if (current >= 0)
        swapcontext(&contexts[current], &main_context);
    else
        raise(SIGUSR2);
}

OPAQUE int wait_for_others(int number)
{
    if (number)
        yield_to_main();
    return ++waited;
}

OPAQUE int serve(struct request *request)
{
    return request->number * 100 + wait_for_others(request->number);
}

static void start(int number, int name)
{
    static const char *names[] = {"first", "second"};
    struct request request = {number, names[name]};

    printf("%d\n", serve(&request));
}

static void handle(int signal_number)
{
    start(0, 1);
    (void)signal_number;
}

static void resume(int stack)
{
    current = stack;
    swapcontext(&main_context, &contexts[stack]);
    current = -1;
}

int main(void)
{
    size_t page = sysconf(_SC_PAGESIZE), whole = page + STACK_SIZE;
    /* Next to each other, with a guard page below each. */
    char *stacks = mmap(NULL, STACKS * whole, PROT_READ | PROT_WRITE,
                        MAP_PRIVATE | MAP_ANONYMOUS | MAP_STACK, -1, 0);
    char *signal_stack = mmap(NULL, STACK_SIZE, PROT_READ | PROT_WRITE,
                              MAP_PRIVATE | MAP_ANONYMOUS | MAP_STACK, -1, 0);
    stack_t alternate = {.ss_sp = signal_stack, .ss_size = STACK_SIZE};
    struct sigaction action = {.sa_handler = handle, .sa_flags = SA_ONSTACK};
    char line[80];
    int order[2];

    for (int i = 0; i < STACKS; i++)
        if (mprotect(stacks + i * whole, page, PROT_NONE))
            abort();
    if (sigaltstack(&alternate, NULL) || sigaction(SIGUSR2, &action, NULL))
        abort();
    puts(".");
    fflush(stdout);
    while (fgets(line, sizeof(line), stdin)) {
        waited = 0;
        if (sscanf(line, "serve %d %d", &order[0], &order[1]) == 2) {
            for (int i = 0; i < 2; i++) {
                ucontext_t *context = &contexts[order[i]];

                getcontext(context);
                context->uc_stack.ss_sp = stacks + order[i] * whole + page;
                context->uc_stack.ss_size = STACK_SIZE;
                context->uc_link = &main_context;
                makecontext(context, (void (*)(void))start, 2, i + 1, i);
                resume(order[i]);
            }
            for (int i = 0; i < 2; i++)
                resume(order[i]);
        } else {
            start(1, 0);
        }
        puts(".");
        fflush(stdout);
    }
    return 0;
}
