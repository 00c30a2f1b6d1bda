/* R2: a flush that failed is never repeated, because the second one succeeds without the data being there (measured). */
#ifndef QREP_FLUSH_H
#define QREP_FLUSH_H

#define QREP_EXIT_FLUSH_FAILED 71 /* EX_OSERR */

/* Say which flush failed, in one line on stderr, and end the process at once: no destructor, no atexit, no further write.
 * error: positive errno. */
_Noreturn void qrep_flush_failed(const char *what, int error);

#endif
