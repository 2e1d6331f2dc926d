/* UCX's macros, as data and functions. */

#include "shim.h"

#include <stddef.h>
#include <string.h>

extern ucs_config_field_t uct_md_config_table[];
extern ucs_config_field_t uct_iface_config_table[];

ucs_config_field_t vmshm_md_config_table[] = {
    {"", "", NULL, offsetof(vmshm_md_config_t, super), UCS_CONFIG_TYPE_TABLE(uct_md_config_table)},

    {"DEVICE", "",
     "Region: its name or file, a device of the guest driver (/dev/vmshm0), or the address of a PCI device (0000:00:04.0).\n"
     "Empty: the environment's VMSHM_DEVICE, else the only one there is.",
     offsetof(vmshm_md_config_t, device), UCS_CONFIG_TYPE_STRING},

    {"SECTION", "-1",
     "Section of the region that this process writes, on a region file, where no device says it.\n"
     "-1: the environment's VMSHM_SECTION, else the first one free.",
     offsetof(vmshm_md_config_t, section), UCS_CONFIG_TYPE_INT},

    {"PATIENCE", "30",
     "Seconds without a heartbeat after which the processes of another machine are taken for dead.",
     offsetof(vmshm_md_config_t, patience), UCS_CONFIG_TYPE_UINT},

    {NULL}
};

ucs_config_field_t vmshm_iface_config_table[] = {
    {"", "", NULL, offsetof(vmshm_iface_config_t, super), UCS_CONFIG_TYPE_TABLE(uct_iface_config_table)},

    {"SEG_SIZE", "auto",
     "Longest active message, of 2048 bytes to 1 MiB. auto: what suits this machine, 8 or 16 KiB and 256 bytes. Longer messages than\n"
     "that lie in a piece of the section of this size, which is found anew for each.",
     offsetof(vmshm_iface_config_t, seg_size), UCS_CONFIG_TYPE_MEMUNITS},

    {"CHUNK_SIZE", "auto",
     "Size of the pieces that a long message from ordinary memory is cut into, so that the receiver copies one while the\n"
     "sender copies the next. auto: what suits this machine, as shown by `vmshm tune`.",
     offsetof(vmshm_iface_config_t, chunk_size), UCS_CONFIG_TYPE_MEMUNITS},

    {"BW", "auto",
     "Bandwidth by which UCX compares this transport with others. auto: as `vmshm tune --measure` has kept it, and at the most a\n"
     "little less than that of UCX's own shared memory, which so has the messages within a machine. Beside a network adapter at\n"
     "least eleven times the adapter's, which so has no part of long messages to other machines of the region.",
     offsetof(vmshm_iface_config_t, bandwidth), UCS_CONFIG_TYPE_BW},

    {"SLEEP", "n",
     "Offers programs to sleep while they wait (UCP_FEATURE_WAKEUP), in virtual machines whose guest driver has doorbells. All\n"
     "machines of the region must have it: the first message from another one wakes nobody. Each message to such a program then\n"
     "waits for its own stores, to see whether the program sleeps.",
     offsetof(vmshm_iface_config_t, sleep), UCS_CONFIG_TYPE_BOOL},

    {NULL}
};

const uint64_t vmshm_iface_flags = UCT_IFACE_FLAG_AM_SHORT | UCT_IFACE_FLAG_AM_BCOPY | UCT_IFACE_FLAG_AM_ZCOPY |
                                   UCT_IFACE_FLAG_GET_ZCOPY | UCT_IFACE_FLAG_CONNECT_TO_IFACE | UCT_IFACE_FLAG_PENDING |
                                   UCT_IFACE_FLAG_CB_SYNC | UCT_IFACE_FLAG_EP_CHECK | UCT_IFACE_FLAG_ERRHANDLE_PEER_FAILURE
#ifdef UCT_IFACE_FLAG_INTER_NODE
                                   /* Each virtual machine is a node. */
                                   | UCT_IFACE_FLAG_INTER_NODE
#endif
    ;
const uint64_t vmshm_open_flags =
    UCT_IFACE_FLAG_PUT_SHORT | UCT_IFACE_FLAG_PUT_BCOPY | UCT_IFACE_FLAG_GET_BCOPY | UCT_IFACE_FLAG_ATOMIC_CPU;
const uint64_t vmshm_event_flags =
    UCT_IFACE_FLAG_EVENT_SEND_COMP | UCT_IFACE_FLAG_EVENT_RECV | UCT_IFACE_FLAG_EVENT_FD;
const uint64_t vmshm_atomics = UCS_BIT(UCT_ATOMIC_OP_ADD) | UCS_BIT(UCT_ATOMIC_OP_AND) | UCS_BIT(UCT_ATOMIC_OP_OR) |
                               UCS_BIT(UCT_ATOMIC_OP_XOR);
const uint64_t vmshm_fetching_atomics = UCS_BIT(UCT_ATOMIC_OP_SWAP) | UCS_BIT(UCT_ATOMIC_OP_CSWAP);
const uint64_t vmshm_rndv_flags = VMSHM_RNDV_FLAGS;
const uint64_t vmshm_open_mode_device = UCT_IFACE_OPEN_MODE_DEVICE;
const uint64_t vmshm_ep_addresses = UCT_EP_PARAM_FIELD_IFACE | UCT_EP_PARAM_FIELD_DEV_ADDR | UCT_EP_PARAM_FIELD_IFACE_ADDR;

ucs_status_t vmshm_md_query(uct_md_h md, vmshm_md_attr_t *attributes)
{
    const uint64_t host = UCS_BIT(UCS_MEMORY_TYPE_HOST);

    vmshm_init_md_attr(attributes);
    VMSHM_MD_CAPABILITIES(attributes)->flags =
        UCT_MD_FLAG_ALLOC | UCT_MD_FLAG_FIXED | UCT_MD_FLAG_REG | UCT_MD_FLAG_NEED_RKEY | VMSHM_MD_INVALIDATES;
    VMSHM_MD_CAPABILITIES(attributes)->reg_mem_types = host;
    VMSHM_MD_CAPABILITIES(attributes)->alloc_mem_types = host;
    VMSHM_MD_CAPABILITIES(attributes)->access_mem_types = host;
    VMSHM_MD_CAPABILITIES(attributes)->max_alloc = UINT64_MAX;
    VMSHM_MD_CAPABILITIES(attributes)->max_reg = SIZE_MAX;
    attributes->rkey_packed_size = VMSHM_KEY_LEN;
    attributes->reg_cost.c = 100e-9;
    memset(&attributes->local_cpus, 0xff, sizeof attributes->local_cpus);
    return UCS_OK;
}

ucs_status_t (*vmshm_make_key)(uct_md_h md, uct_mem_h memory);

unsigned vmshm_reg_flags(vmshm_reg_params_t params)
{
    return VMSHM_REG_FLAGS(params);
}

ucs_status_t vmshm_mkey_pack(VMSHM_MKEY_PACK_PARAMETERS)
{
    ucs_status_t status = vmshm_make_key(md, memory);

    if (status == UCS_OK) {
        memcpy(packed, memory, VMSHM_KEY_LEN);
    }
    return status;
}

void vmshm_init_component(uct_component_t *component)
{
    vmshm_init_later(component);
}

static void vfs_refresh(uct_iface_h iface) {}

static ucs_status_t ep_query(uct_ep_h ep, uct_ep_attr_t *attributes)
{
    return UCS_ERR_UNSUPPORTED;
}

static ucs_status_t ep_invalidate(uct_ep_h ep, unsigned flags)
{
    return UCS_ERR_UNSUPPORTED;
}

uct_iface_internal_ops_t vmshm_internal_ops = {
    .iface_estimate_perf = uct_base_iface_estimate_perf,
    .iface_vfs_refresh = vfs_refresh,
    .ep_query = ep_query,
    .ep_invalidate = ep_invalidate,
    VMSHM_LATER_INTERNAL_OPS
};

void vmshm_ucx_warn(const char *text)
{
    ucs_warn("%s", text);
}

void vmshm_ucx_diag(const char *text)
{
    ucs_diag("%s", text);
}
