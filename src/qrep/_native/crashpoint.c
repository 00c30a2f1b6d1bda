/* Named crash points: the kill matrix asks for one by name and passage, and the process dies there as by kill -9, or stops until it is killed. */
#include "common.h"

#include <signal.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static char crash_name[64];
static atomic_long crash_countdown; /* passages left; 0: not armed */
static atomic_int crash_parsed;
static int crash_stops;

static void parse_environment(void)
{
    const char *want = getenv("QREP_CRASH");
    const char *colon = want ? strchr(want, ':') : NULL;
    char *end;
    if (colon && (size_t)(colon - want) < sizeof crash_name) {
        memcpy(crash_name, want, colon - want);
        atomic_store(&crash_countdown, strtol(colon + 1, &end, 10));
        crash_stops = strcmp(end, ":stop") == 0;
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
    if (strcmp(name, crash_name) != 0 || atomic_fetch_sub(&crash_countdown, 1) != 1)
        return;
    if (crash_stops)
        raise(SIGSTOP); /* to this thread: sent to the process another one may take it, and this one goes on meanwhile */
    else
        kill(getpid(), SIGKILL);
}
