/* Two UCX in one process, each in a namespace of the loader with a transport of its own, send each other a message.
   Arguments: the folder of the libraries of one, its transport; the same of the other. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <ucp/api/ucp.h>

#define FUNCTIONS(f) \
    f(ucp_config_read) f(ucp_config_release) f(ucp_init_version) f(ucp_worker_create) f(ucp_worker_get_address) f(ucp_ep_create) \
    f(ucp_tag_send_nbx) f(ucp_tag_recv_nbx) f(ucp_request_check_status) f(ucp_worker_progress)
#define FIELD(name) __typeof__(name) *name;
#define FIND(name) ucx->name = (__typeof__(name) *)dlsym(library, #name);

struct ucx {
    FUNCTIONS(FIELD)
    ucp_worker_h worker;
    ucp_address_t *address;
    size_t length;
};

static void *load(Lmid_t *space, const char *folder, const char *name)
{
    char path[4096];
    void *library;

    snprintf(path, sizeof path, "%s%s", folder, name);
    library = dlmopen(*space, path, RTLD_NOW);
    if (!library) {
        fprintf(stderr, "%s\n", dlerror());
        exit(1);
    }
    dlinfo(library, RTLD_DI_LMID, space);
    return library;
}

static void check(ucs_status_t status, const char *what)
{
    if (status != UCS_OK) {
        fprintf(stderr, "%s: status %d\n", what, status);
        exit(1);
    }
}

static void start(struct ucx *ucx, Lmid_t space, const char *folder, const char *transport)
{
    ucp_params_t params = {.field_mask = UCP_PARAM_FIELD_FEATURES, .features = UCP_FEATURE_TAG};
    ucp_worker_params_t worker = {.field_mask = 0};
    ucp_config_t *config;
    ucp_context_h context;
    void *library;

    load(&space, folder, "/libucs.so.0");
    load(&space, folder, "/libuct.so.0");
    library = load(&space, folder, "/libucp.so.0");
    load(&space, transport, "");
    FUNCTIONS(FIND)
    check(ucx->ucp_config_read(NULL, NULL, &config), "configuration");
    check(ucx->ucp_init_version(UCP_API_MAJOR, UCP_API_MINOR, &params, config, &context), "context");
    ucx->ucp_config_release(config);
    check(ucx->ucp_worker_create(context, &worker, &ucx->worker), "worker");
    check(ucx->ucp_worker_get_address(ucx->worker, &ucx->address, &ucx->length), "address");
}

static void finish(struct ucx *ucx, struct ucx *other, ucs_status_ptr_t request, const char *what)
{
    while (UCS_PTR_IS_PTR(request) && ucx->ucp_request_check_status(request) == UCS_INPROGRESS) {
        ucx->ucp_worker_progress(ucx->worker);
        other->ucp_worker_progress(other->worker);
    }
    check(UCS_PTR_IS_PTR(request) ? ucx->ucp_request_check_status(request) : UCS_PTR_RAW_STATUS(request), what);
}

static int receive(struct ucx *from, struct ucx *to, char *sent, char *received, size_t length)
{
    ucp_request_param_t none = {.op_attr_mask = 0};
    ucp_ep_params_t params = {.field_mask = UCP_EP_PARAM_FIELD_REMOTE_ADDRESS, .address = to->address};
    ucs_status_ptr_t request;
    ucp_ep_h ep;
    size_t i;

    check(from->ucp_ep_create(from->worker, &params, &ep), "endpoint");
    for (i = 0; i < length; ++i) {
        sent[i] = i % 251;
    }
    request = to->ucp_tag_recv_nbx(to->worker, received, length, 7, -1, &none);
    finish(from, to, from->ucp_tag_send_nbx(ep, sent, length, 7, &none), "send");
    finish(to, from, request, "receive");
    for (i = 0; i < length && received[i] == sent[i]; ++i) {
    }
    return i == length;
}

int main(int argc, char **argv)
{
    static struct ucx one, other;
    static char sent[1 << 20], received[1 << 20];

    if (argc != 5) {
        return 2;
    }
    start(&one, LM_ID_BASE, argv[1], argv[2]);
    start(&other, LM_ID_NEWLM, argv[3], argv[4]);
    if (!receive(&one, &other, sent, received, 8) || !receive(&other, &one, sent + 8, received + 8, sizeof sent - 8)) {
        printf("wrong bytes\n");
        return 1;
    }
    printf("both have sent and received\n");
    fflush(stdout);
    _Exit(0);
}
