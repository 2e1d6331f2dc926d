/* What the collective component needs of Open MPI's headers, with their macros and inline functions as functions. See
   coll.c. */

#ifndef VMSHM_COLL_H
#define VMSHM_COLL_H

#include "ompi_config.h"
#include "mpi.h"
#include "ompi/mca/coll/base/base.h"
#include "ompi/mca/coll/coll.h"
#include "opal/util/proc.h"

/* The type of a number of elements. */
#include VMSHM_OMPI_RELEASE

/* A module for one communicator. */
typedef struct vmshm_coll_module_t {
    mca_coll_base_module_t super;
    /* The functions of the components below us. */
    mca_coll_base_comm_coll_t below;
    /* Ours; NULL before the module is enabled. */
    void *state;
} vmshm_coll_module_t;

/* How the elements of a datatype lie in memory. */
typedef struct vmshm_coll_layout_t {
    /* Bytes of data in an element. */
    size_t size;
    /* Bytes from one element to the next. */
    ptrdiff_t extent;
    /* Where the first byte of data lies. */
    ptrdiff_t gap;
    /* The data lies in memory as it is packed. */
    bool contiguous;
} vmshm_coll_layout_t;

/* A new module, with its functions still missing. The destructor calls destruct. */
vmshm_coll_module_t *vmshm_coll_new(void (*destruct)(void *state));

/* Remembers the functions below a module, and puts ours in their place where Open MPI leaves that to modules; false where one is
   missing that ours may call. */
bool vmshm_coll_save(vmshm_coll_module_t *module, struct ompi_communicator_t *comm);

/* Puts back what was below a module that goes. */
void vmshm_coll_restore(vmshm_coll_module_t *module, struct ompi_communicator_t *comm);

/* Whether a job goes on after the loss of processes. */
bool vmshm_coll_survives(void);

/* The members of a communicator. */
bool vmshm_coll_is_inter(struct ompi_communicator_t *comm);
int vmshm_coll_rank(struct ompi_communicator_t *comm);
int vmshm_coll_size(struct ompi_communicator_t *comm);
opal_proc_t *vmshm_coll_proc(struct ompi_communicator_t *comm, int rank);
bool vmshm_coll_same_job(const opal_proc_t *one, const opal_proc_t *other);

/* Collects len bytes of each member, by the functions below. */
int vmshm_coll_exchange(vmshm_coll_module_t *module, struct ompi_communicator_t *comm, const void *mine, void *all,
                        int len);

/* Datatypes. */
void vmshm_coll_layout(const struct ompi_datatype_t *type, vmshm_count_t count, vmshm_coll_layout_t *layout);
size_t vmshm_coll_span(const struct ompi_datatype_t *type, vmshm_count_t count);
struct ompi_datatype_t *vmshm_coll_byte(void);
int vmshm_coll_pack(const struct ompi_datatype_t *type, vmshm_count_t count, const void *from, void *to, size_t len);
int vmshm_coll_unpack(const struct ompi_datatype_t *type, vmshm_count_t count, void *to, const void *from, size_t len);
int vmshm_coll_copy(const void *from, vmshm_count_t from_count, const struct ompi_datatype_t *from_type, void *to,
                    vmshm_count_t to_count, const struct ompi_datatype_t *to_type);

/* Messages between members: begin one, and wait for all that were begun, also where some fail. */
int vmshm_coll_isend(void *from, vmshm_count_t count, struct ompi_datatype_t *type, int member,
                     struct ompi_communicator_t *comm, struct ompi_request_t **request);
int vmshm_coll_irecv(void *to, vmshm_count_t count, struct ompi_datatype_t *type, int member,
                     struct ompi_communicator_t *comm, struct ompi_request_t **request);
int vmshm_coll_wait(size_t count, struct ompi_request_t **requests);

/* Operations. An operation of MPI's own on a datatype of MPI's own looks at no operand twice. */
bool vmshm_coll_is_intrinsic(struct ompi_op_t *op, const struct ompi_datatype_t *type);
void vmshm_coll_join(struct ompi_op_t *op, const void *left, void *inout, size_t count, struct ompi_datatype_t *type);
void vmshm_coll_join_to(struct ompi_op_t *op, const void *left, const void *right, void *out, size_t count,
                        struct ompi_datatype_t *type);

bool vmshm_coll_commutes(struct ompi_op_t *op);

/* Communicators of some members. Those who give a negative part get NULL. */
int vmshm_coll_split(struct ompi_communicator_t *comm, int part, int key, struct ompi_communicator_t **split);
void vmshm_coll_free(struct ompi_communicator_t *comm);
int vmshm_coll_barrier(struct ompi_communicator_t *comm);
int vmshm_coll_bcast(void *buffer, vmshm_count_t count, struct ompi_datatype_t *type, int root,
                     struct ompi_communicator_t *comm);
int vmshm_coll_reduce(const void *from, void *to, vmshm_count_t count, struct ompi_datatype_t *type, struct ompi_op_t *op,
                      int root, struct ompi_communicator_t *comm);
int vmshm_coll_allreduce(const void *from, void *to, vmshm_count_t count, struct ompi_datatype_t *type,
                         struct ompi_op_t *op, struct ompi_communicator_t *comm);

/* Whether the program has MPI_THREAD_MULTIPLE. */
bool vmshm_coll_is_multiple(void);

/* Whether processes that wait give way to others. */
bool vmshm_coll_yields(void);

#endif
