/* What Open MPI's collective framework has only as macros and inline functions, as plain functions. */

#include "coll.h"
#include "shim.h"

#include <string.h>

#include "ompi/communicator/communicator.h"
#include "ompi/datatype/ompi_datatype.h"
#include "ompi/group/group.h"
#include "ompi/mca/coll/base/coll_tags.h"
#include "ompi/mca/pml/pml.h"
#include "ompi/op/op.h"
#include "ompi/proc/proc.h"
#include "ompi/request/request.h"
#include "ompi/runtime/mpiruntime.h"
#include "opal/datatype/opal_convertor.h"
#include "opal/runtime/opal_progress.h"

/* All operations that we have functions for, or call below us. */
#define FOR_ALL(do_with) \
    do_with(allgather)   \
    do_with(allgatherv)  \
    do_with(allreduce)   \
    do_with(alltoall)    \
    do_with(alltoallv)   \
    do_with(barrier)     \
    do_with(bcast)       \
    do_with(gather)      \
    do_with(gatherv)     \
    do_with(reduce)      \
    do_with(scatter)     \
    do_with(scatterv)

static void (*destruct_state)(void *state);

static void construct(vmshm_coll_module_t *module)
{
    memset(&module->below, 0, sizeof module->below);
    module->state = NULL;
}

static void destruct(vmshm_coll_module_t *module)
{
    if (NULL != module->state) {
        destruct_state(module->state);
        module->state = NULL;
    }
#define RELEASE(name)                                      \
    if (NULL != module->below.coll_##name##_module) {      \
        OBJ_RELEASE(module->below.coll_##name##_module);   \
    }
    FOR_ALL(RELEASE)
}

OBJ_CLASS_DECLARATION(vmshm_coll_module_t);
OBJ_CLASS_INSTANCE(vmshm_coll_module_t, mca_coll_base_module_t, construct, destruct);

vmshm_coll_module_t *vmshm_coll_new(void (*destruct)(void *state))
{
    destruct_state = destruct;
    return OBJ_NEW(vmshm_coll_module_t);
}

bool vmshm_coll_save(vmshm_coll_module_t *module, struct ompi_communicator_t *comm)
{
#define MISSING(name) || NULL == comm->c_coll->coll_##name || NULL == comm->c_coll->coll_##name##_module
    if (false FOR_ALL(MISSING)) {
        return false;
    }
#define SAVE(name)                                                               \
    module->below.coll_##name = comm->c_coll->coll_##name;                       \
    module->below.coll_##name##_module = comm->c_coll->coll_##name##_module;     \
    OBJ_RETAIN(module->below.coll_##name##_module);
    FOR_ALL(SAVE)
#define INSTALL(name)                                              \
    if (VMSHM_OMPI_COLL_INSTALLS) {                                \
        comm->c_coll->coll_##name = module->super.coll_##name;     \
        comm->c_coll->coll_##name##_module = &module->super;       \
    }
    FOR_ALL(INSTALL)
    return true;
}

void vmshm_coll_restore(vmshm_coll_module_t *module, struct ompi_communicator_t *comm)
{
#define RESTORE(name)                                                                                \
    if (VMSHM_OMPI_COLL_INSTALLS && comm->c_coll->coll_##name##_module == &module->super) {          \
        comm->c_coll->coll_##name = module->below.coll_##name;                                       \
        comm->c_coll->coll_##name##_module = module->below.coll_##name##_module;                     \
    }
    FOR_ALL(RESTORE)
}

bool vmshm_coll_survives(void)
{
    return VMSHM_OMPI_SURVIVES;
}

bool vmshm_coll_is_inter(struct ompi_communicator_t *comm)
{
    return OMPI_COMM_IS_INTER(comm);
}

int vmshm_coll_rank(struct ompi_communicator_t *comm)
{
    return ompi_comm_rank(comm);
}

int vmshm_coll_size(struct ompi_communicator_t *comm)
{
    return ompi_comm_size(comm);
}

opal_proc_t *vmshm_coll_proc(struct ompi_communicator_t *comm, int rank)
{
    ompi_proc_t *proc = ompi_group_peer_lookup(comm->c_local_group, rank);

    return NULL == proc ? NULL : &proc->super;
}

bool vmshm_coll_same_job(const opal_proc_t *one, const opal_proc_t *other)
{
    return one->proc_name.jobid == other->proc_name.jobid;
}

int vmshm_coll_exchange(vmshm_coll_module_t *module, struct ompi_communicator_t *comm, const void *mine, void *all,
                        int len)
{
    return module->below.coll_allgather(mine, len, MPI_BYTE, all, len, MPI_BYTE, comm,
                                        module->below.coll_allgather_module);
}

void vmshm_coll_layout(const struct ompi_datatype_t *type, vmshm_count_t count, vmshm_coll_layout_t *layout)
{
    layout->size = type->super.size;
    layout->extent = type->super.ub - type->super.lb;
    layout->gap = type->super.true_lb;
    layout->contiguous = ompi_datatype_is_contiguous_memory_layout(type, count);
}

size_t vmshm_coll_span(const struct ompi_datatype_t *type, vmshm_count_t count)
{
    ptrdiff_t gap;

    return opal_datatype_span(&type->super, count, &gap);
}

/* Packs elements to len bytes, or unpacks them from there. */
static int convert(const struct ompi_datatype_t *type, vmshm_count_t count, void *elements, void *bytes, size_t len,
                   bool pack)
{
    opal_convertor_t convertor;
    struct iovec iov = {.iov_base = bytes, .iov_len = len};
    uint32_t entries = 1;
    size_t done = len;

    OBJ_CONSTRUCT(&convertor, opal_convertor_t);
    if (pack) {
        opal_convertor_copy_and_prepare_for_send(ompi_mpi_local_convertor, &type->super, count, elements, 0, &convertor);
        opal_convertor_pack(&convertor, &iov, &entries, &done);
    } else {
        opal_convertor_copy_and_prepare_for_recv(ompi_mpi_local_convertor, &type->super, count, elements, 0, &convertor);
        opal_convertor_unpack(&convertor, &iov, &entries, &done);
    }
    OBJ_DESTRUCT(&convertor);
    return done == len ? MPI_SUCCESS : MPI_ERR_TRUNCATE;
}

struct ompi_datatype_t *vmshm_coll_byte(void)
{
    return MPI_BYTE;
}

int vmshm_coll_pack(const struct ompi_datatype_t *type, vmshm_count_t count, const void *from, void *to, size_t len)
{
    return convert(type, count, (void *) from, to, len, true);
}

int vmshm_coll_unpack(const struct ompi_datatype_t *type, vmshm_count_t count, void *to, const void *from, size_t len)
{
    return convert(type, count, to, (void *) from, len, false);
}

int vmshm_coll_copy(const void *from, vmshm_count_t from_count, const struct ompi_datatype_t *from_type, void *to,
                    vmshm_count_t to_count, const struct ompi_datatype_t *to_type)
{
    return ompi_datatype_sndrcv(from, from_count, from_type, to, to_count, to_type);
}

int vmshm_coll_isend(void *from, vmshm_count_t count, struct ompi_datatype_t *type, int member,
                     struct ompi_communicator_t *comm, struct ompi_request_t **request)
{
    return MCA_PML_CALL(isend(from, count, type, member, MCA_COLL_BASE_TAG_ALLTOALLV, MCA_PML_BASE_SEND_STANDARD, comm,
                              request));
}

int vmshm_coll_irecv(void *to, vmshm_count_t count, struct ompi_datatype_t *type, int member,
                     struct ompi_communicator_t *comm, struct ompi_request_t **request)
{
    return MCA_PML_CALL(irecv(to, count, type, member, MCA_COLL_BASE_TAG_ALLTOALLV, comm, request));
}

int vmshm_coll_wait(size_t count, struct ompi_request_t **requests)
{
    int first = MPI_SUCCESS;

    /* One by one: ompi_request_wait_all does not wait for the others when one has failed. */
    for (size_t i = 0; i < count; ++i) {
        int rc = ompi_request_wait(&requests[i], MPI_STATUS_IGNORE);
        if (MPI_SUCCESS != rc) {
            first = MPI_SUCCESS == first ? rc : first;
            ompi_request_free(&requests[i]);
        }
    }
    return first;
}

bool vmshm_coll_is_intrinsic(struct ompi_op_t *op, const struct ompi_datatype_t *type)
{
    return ompi_op_is_intrinsic(op) && ompi_datatype_is_predefined(type) && ompi_op_ddt_map[type->id] >= 0
           && NULL != op->o_3buff_intrinsic.fns[ompi_op_ddt_map[type->id]];
}

void vmshm_coll_join(struct ompi_op_t *op, const void *left, void *inout, size_t count, struct ompi_datatype_t *type)
{
    ompi_op_reduce(op, (void *) left, inout, count, type);
}

void vmshm_coll_join_to(struct ompi_op_t *op, const void *left, const void *right, void *out, size_t count,
                        struct ompi_datatype_t *type)
{
    ompi_3buff_op_reduce(op, (void *) left, (void *) right, out, (vmshm_count_t) count, type);
}

bool vmshm_coll_commutes(struct ompi_op_t *op)
{
    return ompi_op_is_commute(op);
}

int vmshm_coll_split(struct ompi_communicator_t *comm, int part, int key, struct ompi_communicator_t **split)
{
    ompi_communicator_t *made = NULL;
    int rc = ompi_comm_split(comm, part < 0 ? MPI_UNDEFINED : part, key, &made, false);

    *split = NULL;
    if (MPI_SUCCESS == rc && NULL != made && MPI_COMM_NULL != made) {
        /* MPI_Finalize frees what is left in the order of numbers, which need not be that of who uses whom: so it leaves one
           reference to this one, until its user is gone. */
        VMSHM_OMPI_COMM_KEEP(made);
        *split = made;
    }
    return rc;
}

void vmshm_coll_free(struct ompi_communicator_t *comm)
{
    VMSHM_OMPI_COMM_LET_GO(comm);
    ompi_comm_free(&comm);
}

int vmshm_coll_barrier(struct ompi_communicator_t *comm)
{
    return comm->c_coll->coll_barrier(comm, comm->c_coll->coll_barrier_module);
}

int vmshm_coll_bcast(void *buffer, vmshm_count_t count, struct ompi_datatype_t *type, int root,
                     struct ompi_communicator_t *comm)
{
    return comm->c_coll->coll_bcast(buffer, count, type, root, comm, comm->c_coll->coll_bcast_module);
}

int vmshm_coll_reduce(const void *from, void *to, vmshm_count_t count, struct ompi_datatype_t *type, struct ompi_op_t *op,
                      int root, struct ompi_communicator_t *comm)
{
    return comm->c_coll->coll_reduce(from, to, count, type, op, root, comm, comm->c_coll->coll_reduce_module);
}

int vmshm_coll_allreduce(const void *from, void *to, vmshm_count_t count, struct ompi_datatype_t *type,
                         struct ompi_op_t *op, struct ompi_communicator_t *comm)
{
    return comm->c_coll->coll_allreduce(from, to, count, type, op, comm, comm->c_coll->coll_allreduce_module);
}

bool vmshm_coll_is_multiple(void)
{
    return ompi_mpi_thread_multiple;
}

bool vmshm_coll_yields(void)
{
    return opal_progress_yield_when_idle;
}
