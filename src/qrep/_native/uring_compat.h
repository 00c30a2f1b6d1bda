/* What liburing 2.3 (Debian 12) does not name yet. Values are the kernel's ABI (include/uapi/linux/io_uring.h), which never change. */
#ifndef QREP_URING_COMPAT_H
#define QREP_URING_COMPAT_H

#include <liburing.h>

/* sqe->ioprio of SEND_ZC and SENDMSG_ZC (Linux 6.2): say in the notification whether the kernel copied after all. */
#ifndef IORING_SEND_ZC_REPORT_USAGE
#define IORING_SEND_ZC_REPORT_USAGE (1U << 3)
#endif

/* cqe->res of that notification. */
#ifndef IORING_NOTIF_USAGE_ZC_COPIED
#define IORING_NOTIF_USAGE_ZC_COPIED (1U << 31)
#endif

#endif
