/* What Open MPI's one-sided framework has only as macros and inline functions, as plain functions. */

#include "osc.h"
#include "shim.h"

#include <stdlib.h>
#include <string.h>

#include "ompi/communicator/communicator.h"
#include "ompi/datatype/ompi_datatype.h"
#include "ompi/datatype/ompi_datatype_internal.h"
#include "ompi/group/group.h"
#include "ompi/mca/osc/base/base.h"
#include "ompi/mca/osc/base/osc_base_obj_convert.h"
#include "ompi/op/op.h"
#include "ompi/request/request.h"
#include "ompi/win/win.h"
#include "opal/datatype/opal_convertor.h"

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

void vmshm_osc_set_module(struct ompi_win_t *win, ompi_osc_base_module_t *module)
{
    win->w_osc_module = module;
}

int vmshm_osc_dup(struct ompi_communicator_t *comm, struct ompi_communicator_t **copy)
{
    return ompi_comm_dup(comm, copy);
}

void vmshm_osc_end(struct ompi_communicator_t *comm)
{
    ompi_comm_free(&comm);
}

int vmshm_osc_barrier(struct ompi_communicator_t *comm)
{
    return comm->c_coll->coll_barrier(comm, comm->c_coll->coll_barrier_module);
}

int vmshm_osc_count(struct ompi_group_t *group)
{
    return ompi_group_size(group);
}

int vmshm_osc_ranks(struct ompi_communicator_t *comm, struct ompi_group_t *group, int *ranks)
{
    int size = ompi_group_size(group), code;
    int *all = malloc(sizeof(int) * (size_t) (size + 1));

    if (NULL == all) {
        return OMPI_ERR_OUT_OF_RESOURCE;
    }
    for (int i = 0; i < size; ++i) {
        all[i] = i;
    }
    code = ompi_group_translate_ranks(group, size, all, comm->c_local_group, ranks);
    free(all);
    return code;
}

bool vmshm_osc_is_apart(struct opal_info_t *info)
{
    bool value = false;
    int found = 0;

    return NULL != info && OPAL_SUCCESS == opal_info_get_bool(info, "alloc_shared_noncontig", &value, &found) && found &&
           value;
}

struct ompi_request_t *vmshm_osc_over(void)
{
    return &ompi_request_empty;
}

size_t vmshm_osc_span(vmshm_count_t count, const struct ompi_datatype_t *type, ptrdiff_t *first)
{
    ptrdiff_t step, len;

    *first = 0;
    if (0 >= count || 0 == type->super.size) {
        return 0;
    }
    /* Elements may follow each other downwards. */
    if (__builtin_mul_overflow(type->super.ub - type->super.lb, count - 1, &step) ||
        __builtin_add_overflow(type->super.true_lb, 0 < step ? 0 : step, first) || PTRDIFF_MIN == step ||
        __builtin_add_overflow(type->super.true_ub - type->super.true_lb, 0 < step ? step : -step, &len)) {
        return SIZE_MAX;
    }
    return (size_t) len;
}

int vmshm_osc_copy(const void *from, vmshm_count_t count, struct ompi_datatype_t *type, void *to, vmshm_count_t to_count,
                   struct ompi_datatype_t *to_type)
{
    ptrdiff_t bytes = vmshm_osc_plain(count, type, to_count, to_type);

    if (0 <= bytes) {
        memcpy(to, from, (size_t) bytes);
        return OMPI_SUCCESS;
    }
    if (vmshm_osc_size(count, type) > vmshm_osc_size(to_count, to_type)) {
        return MPI_ERR_TRUNCATE;
    }
    return ompi_datatype_sndrcv(from, count, type, to, to_count, to_type);
}

int vmshm_osc_combine(const void *origin, vmshm_count_t count, struct ompi_datatype_t *type, void *target,
                      vmshm_count_t target_count, struct ompi_datatype_t *target_type, struct ompi_op_t *op)
{
    ompi_datatype_t *number;

    /* An operation that leaves what there is need not have a datatype for operands. */
    if (vmshm_osc_is_no_op(op)) {
        return OMPI_SUCCESS;
    }
    if (vmshm_osc_size(count, type) > vmshm_osc_size(target_count, target_type)) {
        return MPI_ERR_TRUNCATE;
    }
    if (op == &ompi_mpi_op_replace.op) {
        return vmshm_osc_copy(origin, count, type, target, target_count, target_type);
    }
    if (type == target_type && ompi_datatype_is_predefined(type)) {
        if (0 == type->super.size) {
            return MPI_ERR_TYPE;
        }
        if (!vmshm_osc_is_defined(op, type->id)) {
            return MPI_ERR_OP;
        }
        ompi_op_reduce(op, (void *) origin, target, count, type);
        return OMPI_SUCCESS;
    }
    /* These two are what there is for pairs. */
    if (op == &ompi_mpi_op_maxloc.op || op == &ompi_mpi_op_minloc.op) {
        return OMPI_ERR_NOT_SUPPORTED;
    }
    number = ompi_datatype_get_single_predefined_type_from_args(type);
    if (NULL == number || number != ompi_datatype_get_single_predefined_type_from_args(target_type)) {
        return MPI_ERR_TYPE;
    }
    if (!vmshm_osc_is_defined(op, number->id)) {
        return MPI_ERR_OP;
    }
    return ompi_osc_base_sndrcv_op(origin, count, type, target, target_count, target_type, op);
}

unsigned vmshm_osc_name(struct ompi_communicator_t *comm)
{
    return VMSHM_OMPI_COMM_NUMBER(comm);
}

bool vmshm_osc_number(int name, struct vmshm_osc_number *number)
{
    const ompi_datatype_t *type;

    if (0 > name || OMPI_DATATYPE_MPI_MAX_PREDEFINED <= name) {
        return false;
    }
    type = ompi_datatype_basicDatatypes[name];
    if (NULL == type || 0 == type->super.size || 0 != type->super.true_lb) {
        return false;
    }
    number->datatype = (ompi_datatype_t *) type;
    number->size = type->super.size;
    number->extent = (size_t) (type->super.ub - type->super.lb);
    number->held = (size_t) type->super.true_ub;
    number->name = name;
    return true;
}

bool vmshm_osc_number_of(const struct ompi_datatype_t *type, bool moved, struct vmshm_osc_number *number,
                         bool *predefined)
{
    const ompi_datatype_t *one = type;

    *predefined = ompi_datatype_is_predefined(type);
    if (!*predefined) {
        one = ompi_datatype_get_single_predefined_type_from_args((ompi_datatype_t *) type);
        if (NULL == one && moved) {
            one = MPI_BYTE;
        }
    }
    /* A datatype that this machine does not have has the name of one that it has. */
    return NULL != one && vmshm_osc_number(one->id, number) && number->size == one->super.size;
}

bool vmshm_osc_is_defined(const struct ompi_op_t *op, int name)
{
    int place;

    if (!ompi_op_is_intrinsic((ompi_op_t *) op) || 0 > name || OMPI_DATATYPE_MPI_MAX_PREDEFINED <= name) {
        return false;
    }
    if (vmshm_osc_is_move(op)) {
        return true;
    }
    place = ompi_op_ddt_map[name];
    return 0 <= place && NULL != op->o_func.intrinsic.fns[place];
}

int vmshm_osc_op(const struct ompi_op_t *op)
{
    return op->o_f_to_c_index;
}

bool vmshm_osc_is_no_op(const struct ompi_op_t *op)
{
    return op == &ompi_mpi_op_no_op.op;
}

bool vmshm_osc_is_move(const struct ompi_op_t *op)
{
    return op == &ompi_mpi_op_no_op.op || op == &ompi_mpi_op_replace.op;
}

size_t vmshm_osc_size(vmshm_count_t count, const struct ompi_datatype_t *type)
{
    return 0 < count ? type->super.size * (size_t) count : 0;
}

void vmshm_osc_runs(vmshm_count_t count, const struct ompi_datatype_t *type,
                    void (*each)(void *context, ptrdiff_t at, size_t len), void *context)
{
    /* Nothing is read or written there. */
    char *origin = (char *) ((uintptr_t) 1 << 46);
    opal_convertor_t convertor;
    bool done;

    OBJ_CONSTRUCT(&convertor, opal_convertor_t);
    opal_convertor_copy_and_prepare_for_recv(ompi_mpi_local_convertor, &type->super, count, origin, 0, &convertor);
    do {
        struct iovec runs[32];
        uint32_t entries = 32;
        size_t len = 0;

        done = opal_convertor_raw(&convertor, runs, &entries, &len);
        for (uint32_t i = 0; i < entries; ++i) {
            each(context, (char *) runs[i].iov_base - origin, runs[i].iov_len);
        }
    } while (!done);
    opal_convertor_cleanup(&convertor);
    OBJ_DESTRUCT(&convertor);
}

bool vmshm_osc_apply(int number_of_op, int name, const void *operands, void *target, vmshm_count_t count)
{
    ompi_op_t *op = opal_pointer_array_get_item(ompi_op_f_to_c_table, number_of_op);
    struct vmshm_osc_number number;

    if (NULL == op || !vmshm_osc_number(name, &number) || !vmshm_osc_is_defined(op, name)) {
        return false;
    }
    if (vmshm_osc_is_no_op(op)) {
        return true;
    }
    if (op != &ompi_mpi_op_replace.op) {
        ompi_op_reduce(op, (void *) operands, target, count, number.datatype);
    } else if (number.size == number.extent) {
        memcpy(target, operands, number.size * (size_t) count);
    } else {
        /* What lies between the parts of an element may be another's. */
        ompi_datatype_copy_content_same_ddt(number.datatype, count, target, (void *) operands);
    }
    return true;
}

int vmshm_osc_swap(const void *origin, const void *compare, void *result, const struct ompi_datatype_t *type,
                   void *target)
{
    size_t size = type->super.size;

    if (!ompi_datatype_is_predefined(type) || type->super.ub - type->super.lb != (ptrdiff_t) size) {
        return MPI_ERR_TYPE;
    }
    memcpy(result, target, size);
    if (0 == memcmp(result, compare, size)) {
        memcpy(target, origin, size);
    }
    return OMPI_SUCCESS;
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

static ptrdiff_t bytes_of(vmshm_count_t count, const struct ompi_datatype_t *type)
{
    if (0 != type->super.true_lb || !ompi_datatype_is_contiguous_memory_layout(type, count)) {
        return -1;
    }
    return (ptrdiff_t) (type->super.size * (size_t) count);
}

ptrdiff_t vmshm_osc_plain(vmshm_count_t count, const struct ompi_datatype_t *type, vmshm_count_t target_count,
                          const struct ompi_datatype_t *target_type)
{
    ptrdiff_t bytes = bytes_of(count, type);

    return bytes == bytes_of(target_count, target_type) ? bytes : -1;
}
