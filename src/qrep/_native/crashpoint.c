/* Named crash points: the kill matrix asks for one by name and passage, and the process dies there as by kill -9. */
#include "common.h"

#include <signal.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static char crash_name[64];
static atomic_long crash_countdown; /* passages left; 0: not armed */
static atomic_int crash_parsed;

static void parse_environment(void)
{
    const char *want = getenv("QREP_CRASH");
    const char *colon = want ? strrchr(want, ':') : NULL;
    if (colon && (size_t)(colon - want) < sizeof crash_name) {
        memcpy(crash_name, want, colon - want);
        atomic_store(&crash_countdown, strtol(colon + 1, NULL, 10));
    }
}

__attribute__((constructor)) static void crashpoint_setup(void)
{
    if (!atomic_exchange(&crash_parsed, 1))
        parse_environment();
}

void qrep_crashpoint(const char *name)
{
    if (__builtin_expect(atomic_load_explicit(&crash_countdown, memory_order_relaxed) == 0, 1))
        return;
    if (strcmp(name, crash_name) == 0 && atomic_fetch_sub(&crash_countdown, 1) == 1)
        kill(getpid(), SIGKILL);
}
