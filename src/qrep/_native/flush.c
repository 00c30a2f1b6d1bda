#include "flush.h"

#include <stdio.h>
#include <string.h>
#include <unistd.h>

_Noreturn void qrep_flush_failed(const char *what, int error)
{
    /* dprintf: stdio's locks may be held by another thread. */
    dprintf(STDERR_FILENO, "qrep: flushing %s failed (%s); what it held is unknown now, so this process ends and recovery decides\n", what,
            strerror(error));
    _exit(QREP_EXIT_FLUSH_FAILED);
}
