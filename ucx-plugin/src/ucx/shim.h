/* What the transport needs of UCX: its installed headers, the structures of its series that it does not install, and in shim.c
 * what its headers have as macros only. */

#ifndef VMSHM_UCX_SHIM_H
#define VMSHM_UCX_SHIM_H

#include <ucs/config/parser.h>
#include <ucs/datastruct/list.h>
#include <ucs/debug/log_def.h>
#include <ucs/type/class.h>
#include <uct/api/uct.h>

#include VMSHM_UCX_SERIES

extern ucs_class_t uct_base_iface_t_class;
extern ucs_class_t uct_base_ep_t_class;

ucs_status_t uct_base_iface_t_init(
    uct_base_iface_t *iface,
    ucs_class_t *class,
    int *inits,
    uct_iface_ops_t *ops,
    uct_iface_internal_ops_t *internal_ops,
    uct_md_h md,
    uct_worker_h worker,
    const uct_iface_params_t *params,
    const uct_iface_config_t *config
);
ucs_status_t uct_base_ep_t_init(uct_base_ep_t *ep, ucs_class_t *class, int *inits, uct_base_iface_t *iface);
void uct_component_register(uct_component_t *component);
void uct_tl_register(uct_component_t *component, uct_tl_t *tl);
ucs_status_t uct_iface_handle_ep_err(uct_iface_h iface, uct_ep_h ep, ucs_status_t status);
ucs_status_t uct_single_device_resource(
    uct_md_h md,
    const char *name,
    uct_device_type_t type,
    ucs_sys_device_t sys_device,
    uct_tl_device_resource_t **devices,
    unsigned *count
);
ucs_status_t uct_md_query_single_md_resource(
    uct_component_t *component,
    uct_md_resource_desc_t **resources,
    unsigned *count
);
ucs_status_t uct_md_query_empty_md_resource(uct_md_resource_desc_t **resources, unsigned *count);
void uct_base_iface_query(uct_base_iface_t *iface, uct_iface_attr_t *attributes);
void uct_base_iface_progress_enable(uct_iface_h iface, unsigned flags);
void uct_base_iface_progress_disable(uct_iface_h iface, unsigned flags);
ucs_status_t uct_base_iface_estimate_perf(uct_iface_h iface, uct_perf_attr_t *attributes);
ucs_status_t uct_base_ep_am_short_iov(uct_ep_h ep, uint8_t id, const uct_iov_t *iov, size_t count);

/* In libucp, which shows the version of all of UCX. */
void ucp_get_version(unsigned *major, unsigned *minor, unsigned *release);

/* UCX_VMSHM_* that say which region. */
typedef struct {
    uct_md_config_t super;
    char *device;
    int section;
    unsigned patience;
} vmshm_md_config_t;

/* UCX_VMSHM_* that tune. */
typedef struct {
    uct_iface_config_t super;
    size_t seg_size;
    size_t chunk_size;
    double bandwidth;
    int sleep;
} vmshm_iface_config_t;

extern ucs_config_field_t vmshm_md_config_table[];
extern ucs_config_field_t vmshm_iface_config_table[];

/* Capabilities of the interface. */
extern const uint64_t vmshm_iface_flags;
/* Further ones in an open region, and bits of atomic operations: of all, and of those only that fetch. */
extern const uint64_t vmshm_open_flags;
extern const uint64_t vmshm_atomics;
extern const uint64_t vmshm_fetching_atomics;
/* Events that a descriptor tells of. */
extern const uint64_t vmshm_event_flags;
/* Further ones without which UCX gives long messages to networks. */
extern const uint64_t vmshm_rndv_flags;
extern const uint64_t vmshm_open_mode_device;
extern const uint64_t vmshm_ep_addresses;

/* Functions of an interface that UCX calls itself. */
extern uct_iface_internal_ops_t vmshm_internal_ops;

/* Sets what of a component is the same for all transports. */
void vmshm_init_component(uct_component_t *component);

/* Capabilities of the memory domain. */
ucs_status_t vmshm_md_query(uct_md_h md, vmshm_md_attr_t *attributes);

/* Bytes of a remote key, with which a handle of memory begins. */
enum {
    VMSHM_KEY_LEN = 32
};

/* Flags of a registration. */
unsigned vmshm_reg_flags(vmshm_reg_params_t params);

/* Writes the key of a handle's memory: of the whole, whatever part is asked for. */
ucs_status_t vmshm_mkey_pack(VMSHM_MKEY_PACK_PARAMETERS);

/* Gives memory the key that vmshm_mkey_pack copies; set when the transport is registered. */
extern ucs_status_t (*vmshm_make_key)(uct_md_h md, uct_mem_h memory);

/* Shows a line where UCX's log goes. */
void vmshm_ucx_warn(const char *text);
void vmshm_ucx_diag(const char *text);

#endif
