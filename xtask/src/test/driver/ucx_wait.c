/* Two processes that wait for each other, in the first place one for a message that comes after some seconds: by UCX's descriptor,
 * or by polling.
 *
 *     ucx_wait sleep|poll PORT SECONDS ROUNDS [HOST]
 *
 * The one with a host connects to the other, and lets it wait. */

#include <netdb.h>
#include <poll.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <time.h>
#include <ucp/api/ucp.h>
#include <unistd.h>

/* Longest sleep, milliseconds. */
#define PATIENCE 60000

/* In a ring, in a piece of the section, and by rendezvous, of one piece and of several. */
static const size_t lengths[] = {8, 4000, 100000, 1 << 20};

static ucp_worker_h worker;
static int descriptor = -1;
static long sleeps;

static void fail(const char *what, ...)
{
    va_list arguments;

    va_start(arguments, what);
    vprintf(what, arguments);
    printf("\n");
    exit(1);
}

static void check(ucs_status_t status, const char *what)
{
    if (status != UCS_OK) {
        fail("%s: %s", what, ucs_status_string(status));
    }
}

static void rest(void)
{
    struct pollfd pollfd = {.fd = descriptor, .events = POLLIN};
    ucs_status_t status;

    if (descriptor < 0 || (status = ucp_worker_arm(worker)) == UCS_ERR_BUSY) {
        return;
    }
    check(status, "arm");
    sleeps++;
    if (poll(&pollfd, 1, PATIENCE) == 0) {
        fail("slept through a message");
    }
}

static void finish(ucs_status_ptr_t request, const char *what)
{
    if (request == NULL) {
        return;
    }
    check(UCS_PTR_IS_ERR(request) ? UCS_PTR_STATUS(request) : UCS_OK, what);
    while (ucp_request_check_status(request) == UCS_INPROGRESS) {
        if (ucp_worker_progress(worker) == 0) {
            rest();
        }
    }
    check(ucp_request_check_status(request), what);
    ucp_request_free(request);
}

static int meet(const char *host, const char *port)
{
    struct addrinfo hints = {.ai_socktype = SOCK_STREAM, .ai_flags = AI_PASSIVE, .ai_family = AF_INET}, *address;
    const int on = 1;
    int fd;

    if (getaddrinfo(host, port, &hints, &address) != 0) {
        fail("no address of %s", host);
    }
    for (int tries = 0; tries < 300; tries++) {
        fd = socket(address->ai_family, address->ai_socktype, 0);
        setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
        if (host == NULL) {
            if (bind(fd, address->ai_addr, address->ai_addrlen) != 0 || listen(fd, 1) != 0) {
                fail("cannot listen");
            }
            return accept(fd, NULL, NULL);
        }
        if (connect(fd, address->ai_addr, address->ai_addrlen) == 0) {
            return fd;
        }
        close(fd);
        usleep(100000);
    }
    fail("nobody listens");
    return -1;
}

static void pass(int fd, void *bytes, size_t len, int sends)
{
    for (ssize_t done; len > 0; bytes = (char *) bytes + done, len -= done) {
        done = sends ? write(fd, bytes, len) : read(fd, bytes, len);
        if (done <= 0) {
            fail("the other has ended");
        }
    }
}

static void fill(unsigned char *bytes, size_t len, unsigned seed)
{
    for (size_t i = 0; i < len; i++) {
        bytes[i] = (i + seed) * 2654435761u >> 24;
    }
}

static ucp_ep_h peer;
static unsigned char sent[1 << 20], wanted[1 << 20], got[1 << 20];

static void send_one(unsigned number)
{
    const size_t len = lengths[number % 4];
    ucp_request_param_t param = {0};

    fill(sent, len, number);
    finish(ucp_tag_send_nbx(peer, sent, len, number, &param), "send");
}

static void receive_one(unsigned number)
{
    const size_t len = lengths[number % 4];
    ucp_request_param_t param = {0};

    memset(got, 0, len);
    finish(ucp_tag_recv_nbx(worker, got, len, number, -1, &param), "receive");
    fill(wanted, len, number);
    if (memcmp(got, wanted, len) != 0) {
        fail("message %u is wrong", number);
    }
}

static double seconds(struct timeval time)
{
    return time.tv_sec + time.tv_usec * 1e-6;
}

static double processor(void)
{
    struct rusage usage;

    getrusage(RUSAGE_SELF, &usage);
    return seconds(usage.ru_utime) + seconds(usage.ru_stime);
}

static double now(void)
{
    struct timespec time;

    clock_gettime(CLOCK_MONOTONIC, &time);
    return time.tv_sec + time.tv_nsec * 1e-9;
}

int main(int count, char **arguments)
{
    ucp_params_t params = {.field_mask = UCP_PARAM_FIELD_FEATURES, .features = UCP_FEATURE_TAG};
    ucp_worker_params_t worker_params = {0};
    ucp_ep_params_t ep_params = {.field_mask = UCP_EP_PARAM_FIELD_REMOTE_ADDRESS};
    const char *host = count > 5 ? arguments[5] : NULL;
    const int sleeps_too = count > 4 && strcmp(arguments[1], "sleep") == 0;
    const unsigned rounds = count > 4 ? atoi(arguments[4]) : 0;
    ucp_request_param_t flush = {0};
    ucp_context_h context;
    ucp_address_t *own;
    double begin, used;
    size_t len;
    void *other;
    int fd;

    params.features |= sleeps_too ? UCP_FEATURE_WAKEUP : 0;
    check(ucp_init(&params, NULL, &context), "context");
    check(ucp_worker_create(context, &worker_params, &worker), "worker");
    if (sleeps_too) {
        check(ucp_worker_get_efd(worker, &descriptor), "descriptor");
    }
    check(ucp_worker_get_address(worker, &own, &len), "address");
    fd = meet(host, arguments[2]);
    pass(fd, &len, sizeof len, 1);
    pass(fd, own, len, 1);
    pass(fd, &len, sizeof len, 0);
    other = malloc(len);
    pass(fd, other, len, 0);
    ep_params.address = other;
    check(ucp_ep_create(worker, &ep_params, &peer), "endpoint");

    /* Numbers tell the directions apart. */
    if (host != NULL) {
        receive_one(0);
        sleep(atoi(arguments[3]));
        send_one(4);
    } else {
        send_one(0);
        begin = now();
        used = processor();
        receive_one(4);
        printf("waited %.2f s, processor time %.2f s\n", now() - begin, processor() - used);
    }
    for (unsigned number = 0; number < rounds; number++) {
        if ((host != NULL) == (number % 2 == 0)) {
            send_one(number / 2 + 100);
        } else {
            receive_one(number / 2 + 100);
        }
    }
    finish(ucp_worker_flush_nbx(worker, &flush), "flush");
    printf("%u messages are right, %ld sleeps\n", rounds + 2, sleeps);
    fflush(stdout);
    /* Neither leaves before the other is done. */
    pass(fd, &len, 1, 1);
    pass(fd, &len, 1, 0);
    finish(ucp_ep_close_nbx(peer, &flush), "close");
    ucp_worker_release_address(worker, own);
    ucp_worker_destroy(worker);
    ucp_cleanup(context);
    return 0;
}
