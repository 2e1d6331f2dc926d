/* How much room there is for a message that ob1 asks us to get: ob1 asks for all that was sent, and looks only afterwards
   whether the receiver has room for so much. */

#include "shim.h"

#include <string.h>

#include "ompi/datatype/ompi_datatype.h"
#include "ompi/mca/bml/bml.h"
#include "ompi/mca/pml/base/pml_base_request.h"
#include "ompi/proc/proc.h"
#include "opal/class/opal_free_list.h"

/* ob1's mca_pml_ob1_rdma_frag_t, whose header Open MPI does not install, the same in the series 4.1, 5.0 and 6.0. */
struct frag {
    opal_free_list_item_t super;
    mca_bml_base_btl_t *bml;
    uint64_t header[VMSHM_OMPI_OB1_HEADER];
    int state;
    size_t length;
    size_t remaining;
    mca_pml_base_request_t *request;
    uint32_t retries;
    void (*callback)(void);
    uint64_t offset;
    void *local_address;
    mca_btl_base_registration_handle_t *local_handle;
    uint64_t remote_address;
    uint8_t remote_handle[256];
};

/* Whether the object is of the class with this name, and of this size if not 0. */
static bool is_a(const void *object, const char *name, size_t size)
{
    const opal_class_t *class = NULL != object ? ((const opal_object_t *) object)->obj_class : NULL;

    return NULL != class && (0 == size || size == class->cls_sizeof) && 0 == strcmp(name, class->cls_name);
}

unsigned int vmshm_ompi_room(const opal_proc_t *proc, const void *context, const void *data, const void *local, size_t size,
                    size_t *room)
{
    const mca_bml_base_endpoint_t *endpoint = ((const ompi_proc_t *) proc)->proc_endpoints[OMPI_PROC_ENDPOINT_TAG_BML];
    const struct frag *frag = data;

    /* Through the BML, whose entry for us is the context then, only ob1 gets. Its entries may have moved. */
    if (NULL == endpoint || (const mca_bml_base_btl_t *) context < endpoint->btl_rdma.bml_btls
        || (const mca_bml_base_btl_t *) context >= endpoint->btl_rdma.bml_btls + endpoint->btl_rdma.arr_reserve) {
        return VMSHM_OMPI_ROOM_OTHER;
    }
    if (!is_a(frag, "mca_pml_ob1_rdma_frag_t", sizeof(*frag)) || size != frag->length || local != frag->local_address
        || !is_a(frag->request, "mca_pml_ob1_recv_request_t", 0)) {
        return VMSHM_OMPI_ROOM_UNKNOWN;
    }
    /* Only a buffer without gaps is written by a get. */
    size_t whole = frag->request->req_count * frag->request->req_datatype->super.size;

    *room = whole > frag->offset ? whole - frag->offset : 0;
    return VMSHM_OMPI_ROOM_KNOWN;
}
