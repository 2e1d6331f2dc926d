/* Structures of UCX 1.13 that it does not install: their fields in their order; and with VMSHM_ and vmshm_, in what series differ. The sizes of the base classes are compared
 * with the running library's when the transport is registered. */

#ifndef VMSHM_UCX_V1_13_H
#define VMSHM_UCX_V1_13_H

#include <string.h>
#include <ucs/sys/topo/base/topo.h>

typedef struct uct_component uct_component_t;
typedef struct uct_md_ops uct_md_ops_t;

struct uct_component {
    char name[UCT_COMPONENT_NAME_MAX];
    ucs_status_t (*query_md_resources)(uct_component_t *component, uct_md_resource_desc_t **resources, unsigned *count);
    ucs_status_t (*md_open)(uct_component_t *component, const char *name, const uct_md_config_t *config, uct_md_h *md);
    ucs_status_t (*cm_open)(uct_component_t *component, uct_worker_h worker, const uct_cm_config_t *config, uct_cm_h *cm);
    ucs_status_t (*rkey_unpack)(uct_component_t *component, const void *packed, uct_rkey_t *rkey, void **handle);
    ucs_status_t (*rkey_ptr)(uct_component_t *component, uct_rkey_t rkey, void *handle, uint64_t remote, void **local);
    ucs_status_t (*rkey_release)(uct_component_t *component, uct_rkey_t rkey, void *handle);
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
typedef uct_md_attr_t vmshm_md_attr_t;
#define VMSHM_MD_CAPABILITIES(attributes) (&(attributes)->cap)

/* Registrations of the domain can be ended while peers have their keys. */
#define VMSHM_MD_INVALIDATES UCT_MD_FLAG_INVALIDATE

/* What mem_reg gets beside the memory. */
typedef unsigned vmshm_reg_params_t;
#define VMSHM_REG_FLAGS(params) (params)

#define VMSHM_MKEY_PACK_PARAMETERS uct_md_h md, uct_mem_h memory, const uct_md_mkey_pack_params_t *params, void *packed

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
    int (*is_sockaddr_accessible)(uct_md_h md, const ucs_sock_addr_t *address, uct_sockaddr_accessibility_t mode);
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
} uct_perf_attr_t;

typedef struct uct_ep_attr uct_ep_attr_t;

typedef struct {
    ucs_status_t (*iface_estimate_perf)(uct_iface_h iface, uct_perf_attr_t *attributes);
    void (*iface_vfs_refresh)(uct_iface_h iface);
    ucs_status_t (*ep_query)(uct_ep_h ep, uct_ep_attr_t *attributes);
    ucs_status_t (*ep_invalidate)(uct_ep_h ep, unsigned flags);
} uct_iface_internal_ops_t;

/* Of transports that get and others that put, rendezvous takes those that do both. It then gets, unless UCX_RNDV_SCHEME says other. */
#define VMSHM_RNDV_FLAGS UCT_IFACE_FLAG_PUT_ZCOPY

/* Of an interface's internal functions, those that came after this series; the same of a component, and of the attributes. */
#define VMSHM_LATER_INTERNAL_OPS
static inline void vmshm_init_later(uct_component_t *component) {}
static inline void vmshm_init_md_attr(vmshm_md_attr_t *attributes)
{
    memset(attributes, 0, sizeof *attributes);
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
