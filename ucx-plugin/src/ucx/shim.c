/* UCX's macros, as data and functions. */

#include "shim.h"

#include <stddef.h>

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

    {"SEG_SIZE", "8k",
     "Longest active message, of 2048 bytes to 1 MiB. Longer ones than fit the ring travel in a piece of the section of this size.",
     offsetof(vmshm_iface_config_t, seg_size), UCS_CONFIG_TYPE_MEMUNITS},

    {"CHUNK_SIZE", "auto",
     "Size of the pieces that a long message from ordinary memory is cut into, so that the receiver copies one while the\n"
     "sender copies the next. auto: what suits this machine, as shown by `vmshm tune`.",
     offsetof(vmshm_iface_config_t, chunk_size), UCS_CONFIG_TYPE_MEMUNITS},

    {"BW", "10000MBs",
     "Bandwidth by which UCX compares this transport with others. By default a little less than that of UCX's own shared\n"
     "memory, which so has the messages within a machine.",
     offsetof(vmshm_iface_config_t, bandwidth), UCS_CONFIG_TYPE_BW},

    {NULL}
};

const uint64_t vmshm_iface_flags = UCT_IFACE_FLAG_AM_SHORT | UCT_IFACE_FLAG_AM_BCOPY | UCT_IFACE_FLAG_AM_ZCOPY |
                                   UCT_IFACE_FLAG_GET_ZCOPY | UCT_IFACE_FLAG_CONNECT_TO_IFACE | UCT_IFACE_FLAG_PENDING |
                                   UCT_IFACE_FLAG_CB_SYNC | UCT_IFACE_FLAG_EP_CHECK | UCT_IFACE_FLAG_ERRHANDLE_PEER_FAILURE;
const uint64_t vmshm_md_flags = UCT_MD_FLAG_ALLOC | UCT_MD_FLAG_REG | UCT_MD_FLAG_NEED_RKEY | UCT_MD_FLAG_INVALIDATE;
const uint64_t vmshm_open_mode_device = UCT_IFACE_OPEN_MODE_DEVICE;
const uint64_t vmshm_ep_addresses = UCT_EP_PARAM_FIELD_IFACE | UCT_EP_PARAM_FIELD_DEV_ADDR | UCT_EP_PARAM_FIELD_IFACE_ADDR;

void vmshm_ucx_warn(const char *text)
{
    ucs_warn("%s", text);
}

void vmshm_ucx_diag(const char *text)
{
    ucs_diag("%s", text);
}
