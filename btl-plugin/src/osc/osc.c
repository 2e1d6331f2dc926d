/* What Open MPI's one-sided framework has only as macros and inline functions, as plain functions. */

#include "osc.h"

#include <string.h>

#include "ompi/communicator/communicator.h"
#include "ompi/datatype/ompi_datatype.h"
#include "ompi/group/group.h"
#include "ompi/mca/osc/base/base.h"
#include "ompi/win/win.h"

ompi_osc_base_component_t *vmshm_osc_component(const char *name)
{
    mca_base_component_list_item_t *item;

    OPAL_LIST_FOREACH(item, &ompi_osc_base_framework.framework_components, mca_base_component_list_item_t) {
        if (0 == strcmp(item->cli_component->mca_component_name, name)) {
            return (ompi_osc_base_component_t *) item->cli_component;
        }
    }
    return NULL;
}

ompi_osc_base_module_t *vmshm_osc_module(struct ompi_win_t *win)
{
    return win->w_osc_module;
}

bool vmshm_osc_spans_hosts(struct ompi_communicator_t *comm)
{
    return ompi_group_have_remote_peers(comm->c_local_group);
}

int vmshm_osc_exchange(struct ompi_communicator_t *comm, const void *mine, void *all, int len)
{
    return comm->c_coll->coll_allgather((void *) mine, len, MPI_BYTE, all, len, MPI_BYTE, comm,
                                        comm->c_coll->coll_allgather_module);
}

static ptrdiff_t bytes_of(int count, const struct ompi_datatype_t *type)
{
    if (0 != type->super.true_lb || !ompi_datatype_is_contiguous_memory_layout(type, count)) {
        return -1;
    }
    return (ptrdiff_t) (type->super.size * (size_t) count);
}

ptrdiff_t vmshm_osc_plain(int count, const struct ompi_datatype_t *type, int target_count,
                          const struct ompi_datatype_t *target_type)
{
    ptrdiff_t bytes = bytes_of(count, type);

    return bytes == bytes_of(target_count, target_type) ? bytes : -1;
}
