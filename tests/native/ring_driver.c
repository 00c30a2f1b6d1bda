/* What Python cannot reach: the judgement of single transfers, opcodes that a restricted ring must refuse, and everything under sanitizers.
 * `ring_driver NAME` runs one check and exits 0, or aborts. test_ring_native.py compiles it with ASan and UBSan, and once with TSan. */
#include "buffers.h"
#include "salvage.h"

#include "ring_uring.c" /* for the io_uring inside */

#include <assert.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <stdio.h>
#include <unistd.h>

#define MIB ((size_t)1 << 20)

static struct qrep_ring *open_ring(uint32_t backend, uint32_t unrestricted, const int *files, unsigned count)
{
    struct qrep_ring *ring;
    struct qrep_ring_options options = { .backend = backend, .entries = 16, .unrestricted = unrestricted };
    assert(qrep_ring_open(&ring, &options) == 0);
    if (count > 0)
        assert(qrep_ring_register_files(ring, files, count) == 0);
    return ring;
}

static struct qrep_completion wait_one(struct qrep_ring *ring)
{
    struct qrep_completion done;
    assert(qrep_ring_wait(ring, &done, 1, 20000000000u) == 1);
    return done;
}

static int open_scratch(size_t size)
{
    char path[] = "/tmp/qrep-ring-XXXXXX";
    int descriptor = mkstemp(path);
    assert(descriptor >= 0 && unlink(path) == 0 && ftruncate(descriptor, (off_t)size) == 0);
    return descriptor;
}

static void connect_pair(int pair[2])
{
    int server = socket(AF_INET, SOCK_STREAM, 0);
    struct sockaddr_in address = { .sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
    socklen_t size = sizeof address;
    assert(bind(server, (struct sockaddr *)&address, size) == 0 && listen(server, 1) == 0);
    assert(getsockname(server, (struct sockaddr *)&address, &size) == 0);
    pair[0] = socket(AF_INET, SOCK_STREAM, 0);
    assert(connect(pair[0], (struct sockaddr *)&address, size) == 0);
    pair[1] = accept(server, NULL, NULL);
    assert(pair[1] >= 0);
    close(server);
}

/* --- the judgement of a transfer ------------------------------------------------------------------------------------------------ */

static struct qrep_request disk_request(int direct, size_t size) { return (struct qrep_request){ .kind = QREP_READ, .direct = (uint8_t)direct, .size = size }; }

static void step_continues_a_direct_transfer_from_whole_pages(void)
{
    struct qrep_request request = disk_request(1, 5 * 4096);
    assert(qrep_request_step(&request, 4096 + 512) == QREP_STEP_AGAIN && request.position == 4096); /* 512 bytes are read again */
    assert(qrep_request_step(&request, -EINTR) == QREP_STEP_AGAIN && request.position == 4096);
    assert(qrep_request_step(&request, 2 * 4096) == QREP_STEP_AGAIN && request.position == 3 * 4096);
    assert(qrep_request_step(&request, 2 * 4096) == QREP_STEP_DONE && request.result == 5 * 4096);
}

static void step_takes_an_unaligned_count_twice_for_the_end(void)
{
    struct qrep_request request = disk_request(1, 5 * 4096);
    assert(qrep_request_step(&request, 4096 + 512) == QREP_STEP_AGAIN);
    assert(qrep_request_step(&request, 512) == QREP_STEP_DONE && request.result == 4096 + 512);
    request = disk_request(1, 5 * 4096);
    assert(qrep_request_step(&request, 4096 + 512) == QREP_STEP_AGAIN);
    assert(qrep_request_step(&request, 0) == QREP_STEP_DONE && request.result == 4096 + 512); /* shrunk meanwhile: what was read counts */
}

static void step_continues_a_buffered_transfer_where_it_stopped(void)
{
    struct qrep_request request = disk_request(0, 10000);
    assert(qrep_request_step(&request, 777) == QREP_STEP_AGAIN && request.position == 777);
    assert(qrep_request_step(&request, 0) == QREP_STEP_DONE && request.result == 777);
}

static void step_reports_an_error_after_some_bytes_as_an_error(void)
{
    struct qrep_request request = disk_request(1, 3 * 4096);
    assert(qrep_request_step(&request, 4096) == QREP_STEP_AGAIN);
    assert(qrep_request_step(&request, -EIO) == QREP_STEP_DONE && request.result == -EIO);
}

static void step_never_asks_a_flush_again(void)
{
    const int errors[] = { -EINTR, -EAGAIN, -EIO, -ENOSPC };
    for (size_t i = 0; i < sizeof errors / sizeof *errors; i++) {
        struct qrep_request request = { .kind = QREP_FSYNC };
        assert(qrep_request_step(&request, errors[i]) == QREP_STEP_DONE && request.result == errors[i]);
    }
}

static void step_moves_along_the_iovecs_of_a_stream(void)
{
    uint8_t bytes[100];
    struct iovec iov[] = { { bytes, 10 }, { bytes, 0 }, { bytes + 10, 20 }, { bytes, 0 } };
    struct qrep_request request = { .kind = QREP_RECEIVE, .message = { .msg_iov = iov, .msg_iovlen = 4 } };
    assert(qrep_request_step(&request, 10) == QREP_STEP_AGAIN && request.message.msg_iov == &iov[2]);
    assert(qrep_request_step(&request, -EAGAIN) == QREP_STEP_POLL);
    assert(qrep_request_step(&request, 5) == QREP_STEP_AGAIN && iov[2].iov_base == bytes + 15 && iov[2].iov_len == 15);
    assert(qrep_request_step(&request, 15) == QREP_STEP_DONE && request.result == 30);
}

static void step_sends_plainly_where_zero_copy_is_refused(void)
{
    uint8_t byte;
    struct iovec iov = { &byte, 1 };
    struct qrep_request request = { .kind = QREP_SEND_ZC, .message = { .msg_iov = &iov, .msg_iovlen = 1 } };
    assert(qrep_request_step(&request, -ENOBUFS) == QREP_STEP_AGAIN && request.kind == QREP_SEND);
    assert(qrep_request_step(&request, -ENOBUFS) == QREP_STEP_DONE && request.result == -ENOBUFS); /* a plain send may fail with it */
}

/* --- restrictions --------------------------------------------------------------------------------------------------------------- */

static int result_of(struct io_uring *ring, struct io_uring_sqe **sqe)
{
    struct io_uring_cqe *cqe;
    assert(io_uring_submit(ring) == 1 && io_uring_wait_cqe(ring, &cqe) == 0);
    int result = cqe->res;
    io_uring_cqe_seen(ring, cqe);
    *sqe = io_uring_get_sqe(ring);
    return result;
}

static void restricted_ring_does_its_work_and_refuses_everything_else(void)
{
    int file = open_scratch(MIB), pair[2];
    connect_pair(pair);
    int files[] = { file, pair[0], pair[1] };
    struct qrep_ring *front = open_ring(QREP_RING_URING, 0, files, 3);
    static uint8_t bytes[4096] __attribute__((aligned(4096))), received[4096];
    struct iovec out = { bytes, sizeof bytes }, in = { received, sizeof received };
    assert(qrep_ring_write(front, 0, bytes, sizeof bytes, 0, 1) == 0 && wait_one(front).result == 4096);
    assert(qrep_ring_read(front, 0, bytes, sizeof bytes, 0, 2) == 0 && wait_one(front).result == 4096);
    assert(qrep_ring_fsync(front, 0, 3) == 0 && wait_one(front).result == 0);
    assert(qrep_ring_receive(front, 2, &in, 1, 4) == 0 && qrep_ring_send(front, 1, &out, 1, 0, 5) == 0);
    assert(wait_one(front).result == 4096 && wait_one(front).result == 4096);

    struct io_uring *ring = &((struct uring *)front)->ring;
    struct io_uring_sqe *sqe = io_uring_get_sqe(ring);
    io_uring_prep_openat(sqe, AT_FDCWD, "/etc/passwd", O_RDONLY, 0);
    assert(result_of(ring, &sqe) == -EACCES);
    io_uring_prep_connect(sqe, pair[0], (struct sockaddr *)bytes, 16);
    assert(result_of(ring, &sqe) == -EACCES);
    io_uring_prep_socket(sqe, AF_INET, SOCK_STREAM, 0, 0);
    assert(result_of(ring, &sqe) == -EACCES);
    io_uring_prep_read(sqe, file, bytes, sizeof bytes, 0); /* a descriptor by number, not registered */
    assert(result_of(ring, &sqe) == -EACCES);
    assert(io_uring_register_files(ring, files, 1) == -EACCES);
    qrep_ring_close(front);
    close(file), close(pair[0]), close(pair[1]);
}

/* --- a bit of everything, for the sanitizers ------------------------------------------------------------------------------------ */

static void move_data(uint32_t backend)
{
    struct qrep_arena arena;
    assert(qrep_arena_open(&arena, 5 * MIB) == 0 && arena.size == 6 * MIB && (uintptr_t)arena.base % (2 * MIB) == 0);
    int file = open_scratch(4 * MIB), pair[2];
    connect_pair(pair);
    int files[] = { file, pair[0], pair[1] };
    struct qrep_ring *ring = open_ring(backend, 0, files, 3);
    assert(qrep_ring_register_files(ring, files, 3) == -EBUSY);
    assert(qrep_ring_register_buffers(ring, arena.base, arena.size) >= 0);
    for (size_t i = 0; i < 2 * MIB; i++)
        arena.base[i] = (uint8_t)(i * 7 + i / 251);
    for (unsigned i = 0; i < 16; i++)
        assert(qrep_ring_write(ring, 0, arena.base + i * (MIB / 8), MIB / 8, i * (MIB / 8), i) == 0);
    assert(qrep_ring_write(ring, 0, arena.base, 1, 0, 99) == -EBUSY && qrep_ring_in_flight(ring) == 16);
    unsigned seen = 0;
    while (qrep_ring_in_flight(ring) > 0) {
        struct qrep_completion done = wait_one(ring);
        assert(done.result == (int64_t)MIB / 8);
        seen |= 1u << done.tag;
    }
    assert(seen == 0xffff);
    for (unsigned round = 0; round < 20; round++) {
        uint8_t header[64] = { (uint8_t)round }, got[64];
        struct iovec out[2] = { { header, 64 }, { arena.base + round, 2 * MIB - 64 } };
        struct iovec in[2] = { { got, 64 }, { arena.base + 3 * MIB, 2 * MIB - 64 } };
        assert(qrep_ring_receive(ring, 2, in, 2, 1) == 0);
        assert((round % 2 ? qrep_ring_send_zc : qrep_ring_send)(ring, 1, out, 2, 0, 2) == 0);
        while (qrep_ring_in_flight(ring) > 0) {
            struct qrep_completion done = wait_one(ring);
            assert(done.result == (done.flags & QREP_DONE_NOTIFY ? 0 : (int64_t)(2 * MIB)));
        }
        assert(got[0] == round && memcmp(arena.base + round, arena.base + 3 * MIB, 2 * MIB - 64) == 0);
    }
    /* left in flight: close drains */
    for (unsigned i = 0; i < 16; i++)
        assert(qrep_ring_read(ring, 0, arena.base + i * (MIB / 8), MIB / 8, i * (MIB / 8), i) == 0);
    qrep_ring_close(ring);
    qrep_arena_close(&arena);
    close(file), close(pair[0]), close(pair[1]);
}

static void data_moves_on_both_backends(void)
{
    move_data(QREP_RING_URING);
    move_data(QREP_RING_THREADS);
}

static void data_moves_on_threads(void) { move_data(QREP_RING_THREADS); }

#define CHECK(name) { #name, name }
static const struct {
    const char *name;
    void (*run)(void);
} checks[] = {
    CHECK(step_continues_a_direct_transfer_from_whole_pages),
    CHECK(step_takes_an_unaligned_count_twice_for_the_end),
    CHECK(step_continues_a_buffered_transfer_where_it_stopped),
    CHECK(step_reports_an_error_after_some_bytes_as_an_error),
    CHECK(step_never_asks_a_flush_again),
    CHECK(step_moves_along_the_iovecs_of_a_stream),
    CHECK(step_sends_plainly_where_zero_copy_is_refused),
    CHECK(restricted_ring_does_its_work_and_refuses_everything_else),
    CHECK(data_moves_on_both_backends),
    CHECK(data_moves_on_threads),
};

int main(int argc, char **argv)
{
    for (size_t i = 0; i < sizeof checks / sizeof *checks; i++) {
        if (argc == 2 && strcmp(argv[1], checks[i].name) == 0) {
            checks[i].run();
            return 0;
        }
    }
    fprintf(stderr, "ring_driver: no check of that name\n");
    return 2;
}
