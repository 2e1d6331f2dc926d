/* Structures of UCX 1.18 that it does not install: their fields in their order; and with VMSHM_ and vmshm_, in what series differ. The sizes of the base classes are compared
 * with the running library's when the transport is registered. */

#ifndef VMSHM_UCX_V1_18_H
#define VMSHM_UCX_V1_18_H

#include <ucs/sys/topo/base/topo.h>

typedef struct uct_component uct_component_t;
typedef struct uct_md_ops uct_md_ops_t;

typedef struct {
    uint64_t field_mask;
} uct_rkey_compare_params_t;

struct uct_component {
    char name[UCT_COMPONENT_NAME_MAX];
    ucs_status_t (*query_md_resources)(uct_component_t *component, uct_md_resource_desc_t **resources, unsigned *count);
    ucs_status_t (*md_open)(uct_component_t *component, const char *name, const uct_md_config_t *config, uct_md_h *md);
    ucs_status_t (*cm_open)(uct_component_t *component, uct_worker_h worker, const uct_cm_config_t *config, uct_cm_h *cm);
    ucs_status_t (*rkey_unpack)(uct_component_t *component, const void *packed, uct_rkey_t *rkey, void **handle);
    ucs_status_t (*rkey_ptr)(uct_component_t *component, uct_rkey_t rkey, void *handle, uint64_t remote, void **local);
    ucs_status_t (*rkey_release)(uct_component_t *component, uct_rkey_t rkey, void *handle);
    ucs_status_t (*rkey_compare)(
        uct_component_t *component,
        uct_rkey_t first,
        uct_rkey_t second,
        const uct_rkey_compare_params_t *params,
        int *result
    );
    ucs_config_global_list_entry_t md_config;
    ucs_config_global_list_entry_t cm_config;
    ucs_list_link_t tl_list;
    ucs_list_link_t list;
    uint64_t flags;
    void (*md_vfs_init)(uct_md_h md);
};

struct uct_md_config {
    char unused;
};

typedef struct {
    uint64_t field_mask;
    unsigned flags;
    uct_mem_h memh;
    uct_completion_t *comp;
} uct_md_mem_dereg_params_t;

typedef struct {
    uint64_t field_mask;
    unsigned flags;
} uct_md_mkey_pack_params_t;

typedef enum {
    UCT_MD_MEM_DEREG_FIELD_MEMH = 1,
    UCT_MD_MEM_DEREG_FIELD_FLAGS = 2,
    UCT_MD_MEM_DEREG_FIELD_COMPLETION = 4
} uct_md_mem_dereg_field_mask_t;

typedef enum {
    UCT_MD_MEM_DEREG_FLAG_INVALIDATE = 1
} uct_md_mem_dereg_flags_t;

/* What md_query fills in, and where most of it lies there. */
typedef struct {
    uint64_t field_mask;
    uint64_t max_alloc;
    size_t max_reg;
    uint64_t flags;
    uint64_t reg_mem_types;
    uint64_t reg_nonblock_mem_types;
    uint64_t cache_mem_types;
    uint64_t gva_mem_types;
    uint64_t detect_mem_types;
    uint64_t alloc_mem_types;
    uint64_t access_mem_types;
    uint64_t dmabuf_mem_types;
    ucs_linear_func_t reg_cost;
    char component_name[UCT_COMPONENT_NAME_MAX];
    size_t rkey_packed_size;
    ucs_cpu_set_t local_cpus;
    size_t exported_mkey_packed_size;
    char global_id[UCT_MD_GLOBAL_ID_MAX];
    size_t reg_alignment;
} uct_md_attr_v2_t;

typedef uct_md_attr_v2_t vmshm_md_attr_t;
#define VMSHM_MD_CAPABILITIES(attributes) (attributes)

/* Registrations of the domain can be ended while peers have their keys: UCT_MD_FLAG_INVALIDATE_RMA. */
#define VMSHM_MD_INVALIDATES ((uint64_t) UCT_MD_FLAG_LAST)

/* What mem_reg gets beside the memory. */
typedef struct {
    uint64_t field_mask;
    uint64_t flags;
    int dmabuf_fd;
    size_t dmabuf_offset;
} uct_md_mem_reg_params_t;

typedef const uct_md_mem_reg_params_t *vmshm_reg_params_t;
/* The mask's first bit is for the flags. */
#define VMSHM_REG_FLAGS(params) ((params)->field_mask & 1 ? (unsigned) (params)->flags : 0)

#define VMSHM_MKEY_PACK_PARAMETERS \
    uct_md_h md, uct_mem_h memory, void *address, size_t len, const uct_md_mkey_pack_params_t *params, void *packed

typedef struct uct_md_mem_attach_params uct_md_mem_attach_params_t;

struct uct_md_ops {
    void (*close)(uct_md_h md);
    ucs_status_t (*query)(uct_md_h md, vmshm_md_attr_t *attributes);
    ucs_status_t (*mem_alloc)(
        uct_md_h md,
        size_t *len,
        void **address,
        ucs_memory_type_t type,
        unsigned flags,
        const char *name,
        uct_mem_h *memory
    );
    ucs_status_t (*mem_free)(uct_md_h md, uct_mem_h memory);
    ucs_status_t (*mem_advise)(uct_md_h md, uct_mem_h memory, void *address, size_t len, unsigned advice);
    ucs_status_t (*mem_reg)(uct_md_h md, void *address, size_t len, vmshm_reg_params_t params, uct_mem_h *memory);
    ucs_status_t (*mem_dereg)(uct_md_h md, const uct_md_mem_dereg_params_t *params);
    ucs_status_t (*mem_query)(uct_md_h md, const void *address, size_t len, uct_md_mem_attr_t *attributes);
    ucs_status_t (*mkey_pack)(VMSHM_MKEY_PACK_PARAMETERS);
    ucs_status_t (*mem_attach)(uct_md_h md, const void *key, uct_md_mem_attach_params_t *params, uct_mem_h *memory);
    ucs_status_t (*detect_memory_type)(uct_md_h md, const void *address, size_t len, ucs_memory_type_t *type);
};

typedef struct uct_md {
    uct_md_ops_t *ops;
    uct_component_t *component;
} uct_md_t;

typedef struct {
    char name[UCT_DEVICE_NAME_MAX];
    uct_device_type_t type;
    ucs_sys_device_t sys_device;
} uct_tl_device_resource_t;

typedef struct uct_tl {
    char name[UCT_TL_NAME_MAX];
    ucs_status_t (*query_devices)(uct_md_h md, uct_tl_device_resource_t **devices, unsigned *count);
    ucs_status_t (*iface_open)(
        uct_md_h md,
        uct_worker_h worker,
        const uct_iface_params_t *params,
        const uct_iface_config_t *config,
        uct_iface_h *iface
    );
    ucs_config_global_list_entry_t config;
    ucs_list_link_t list;
} uct_tl_t;

struct uct_iface_config {
    struct {
        uct_alloc_method_t *methods;
        unsigned count;
    } alloc_methods;
    int failure;
    size_t max_num_eps;
};

/* What a transport tells of one operation. */
typedef struct {
    uint64_t field_mask;
    int operation;
    ucs_memory_type_t local_memory_type;
    ucs_memory_type_t remote_memory_type;
    ucs_sys_device_t local_sys_device;
    ucs_sys_device_t remote_sys_device;
    double send_pre_overhead;
    double send_post_overhead;
    double recv_overhead;
    uct_ppn_bandwidth_t bandwidth;
    ucs_linear_func_t latency;
    size_t max_inflight_eps;
    uint64_t flags;
} uct_perf_attr_t;

typedef struct uct_ep_attr uct_ep_attr_t;

typedef struct {
    uint64_t field_mask;
    const uct_device_addr_t *device_addr;
    const uct_iface_addr_t *iface_addr;
    char *info_string;
    size_t info_string_length;
    int scope;
    size_t device_addr_length;
    size_t iface_addr_length;
} uct_iface_is_reachable_params_t;

enum {
    UCT_IFACE_IS_REACHABLE_FIELD_DEVICE_ADDR = 1,
    UCT_IFACE_IS_REACHABLE_FIELD_IFACE_ADDR = 2,
    UCT_IFACE_IS_REACHABLE_FIELD_DEVICE_ADDR_LENGTH = 32,
    UCT_IFACE_IS_REACHABLE_FIELD_IFACE_ADDR_LENGTH = 64
};

typedef struct uct_ep_is_connected_params uct_ep_is_connected_params_t;
typedef struct uct_ep_connect_to_ep_params uct_ep_connect_to_ep_params_t;

typedef struct {
    ucs_status_t (*iface_estimate_perf)(uct_iface_h iface, uct_perf_attr_t *attributes);
    void (*iface_vfs_refresh)(uct_iface_h iface);
    ucs_status_t (*ep_query)(uct_ep_h ep, uct_ep_attr_t *attributes);
    ucs_status_t (*ep_invalidate)(uct_ep_h ep, unsigned flags);
    ucs_status_t (*ep_connect_to_ep_v2)(
        uct_ep_h ep,
        const uct_device_addr_t *device,
        const uct_ep_addr_t *address,
        const uct_ep_connect_to_ep_params_t *params
    );
    int (*iface_is_reachable_v2)(uct_iface_h iface, const uct_iface_is_reachable_params_t *params);
    int (*ep_is_connected)(uct_ep_h ep, const uct_ep_is_connected_params_t *params);
} uct_iface_internal_ops_t;

/* Weak, since older UCX have none of them: into such a one the library must be loaded to say that it stays out. */
#pragma weak ucs_config_doc_nop
#pragma weak uct_base_rkey_compare
#pragma weak uct_md_base_md_query
#pragma weak uct_base_ep_is_connected
#pragma weak uct_iface_fill_info_str_buf

ucs_status_t uct_base_rkey_compare(
    uct_component_t *component,
    uct_rkey_t first,
    uct_rkey_t second,
    const uct_rkey_compare_params_t *params,
    int *result
);
void uct_md_base_md_query(uct_md_attr_v2_t *attributes);
int uct_base_ep_is_connected(uct_ep_h ep, const uct_ep_is_connected_params_t *params);
void uct_iface_fill_info_str_buf(const uct_iface_is_reachable_params_t *params, const char *format, ...);

static inline int vmshm_is_reachable_v2(uct_iface_h iface, const uct_iface_is_reachable_params_t *params)
{
    uint64_t has = params->field_mask;
    int is_reachable;

    if (!(has & UCT_IFACE_IS_REACHABLE_FIELD_DEVICE_ADDR)) {
        uct_iface_fill_info_str_buf(params, "no region's id is given");
        return 0;
    }
    /* Both come from a stranger, and each half of an endpoint's name has 16 bytes. */
    if (((has & UCT_IFACE_IS_REACHABLE_FIELD_DEVICE_ADDR_LENGTH) && params->device_addr_length < 16) ||
        ((has & UCT_IFACE_IS_REACHABLE_FIELD_IFACE_ADDR_LENGTH) && params->iface_addr_length < 16)) {
        uct_iface_fill_info_str_buf(params, "an address is too short");
        return 0;
    }
    is_reachable = iface->ops.iface_is_reachable(
        iface, params->device_addr, has & UCT_IFACE_IS_REACHABLE_FIELD_IFACE_ADDR ? params->iface_addr : NULL
    );
    if (!is_reachable) {
        uct_iface_fill_info_str_buf(params, "another region or protocol, or the interface itself");
    }
    return is_reachable;
}

static inline ucs_status_t vmshm_connect_to_ep_v2(
    uct_ep_h ep,
    const uct_device_addr_t *device,
    const uct_ep_addr_t *address,
    const uct_ep_connect_to_ep_params_t *params
)
{
    return UCS_ERR_UNSUPPORTED;
}

/* Rendezvous takes transports that get beside others that put. */
#define VMSHM_RNDV_FLAGS 0

/* Of an interface's internal functions, those that came after 1.13; the same of a component, and of the attributes. */
#define VMSHM_LATER_INTERNAL_OPS \
    .ep_connect_to_ep_v2 = vmshm_connect_to_ep_v2, .iface_is_reachable_v2 = vmshm_is_reachable_v2, \
    .ep_is_connected = uct_base_ep_is_connected

static inline void vmshm_init_later(uct_component_t *component)
{
    component->rkey_compare = uct_base_rkey_compare;
}

static inline void vmshm_init_md_attr(vmshm_md_attr_t *attributes)
{
    /* UCX has set the mask of its fields, and cleared all others. */
    uct_md_base_md_query(attributes);
    /* UCX registers what it sends of such domains only, and keeps the registration until the memory is unmapped. */
    attributes->cache_mem_types = UCS_BIT(UCS_MEMORY_TYPE_HOST);
    /* A registration touches no memory. */
    attributes->reg_nonblock_mem_types = UCS_BIT(UCS_MEMORY_TYPE_HOST);
}

typedef struct {
    uct_am_callback_t cb;
    void *arg;
    uint32_t flags;
} uct_am_handler_t;

/* Without statistics, as distributions build it. */
typedef struct uct_base_iface {
    uct_iface_t super;
    uct_iface_internal_ops_t *internal_ops;
    uct_md_h md;
    struct uct_priv_worker *worker;
    uct_am_handler_t am[UCT_AM_ID_MAX];
    uct_am_tracer_t am_tracer;
    void *am_tracer_arg;
    uct_error_handler_t err_handler;
    void *err_handler_arg;
    uint32_t err_handler_flags;
    struct {
        uct_worker_cb_id_t id;
        uint32_t refcount;
    } prog;
    unsigned progress_flags;
    struct {
        unsigned num_alloc_methods;
        uct_alloc_method_t alloc_methods[UCT_ALLOC_METHOD_LAST];
        ucs_log_level_t failure_level;
        size_t max_num_eps;
    } config;
} uct_base_iface_t;

typedef struct uct_base_ep {
    uct_ep_t super;
} uct_base_ep_t;

#endif
