/* What the one-sided component needs of Open MPI's headers, with their inline functions as functions. See osc.c. */

#ifndef VMSHM_OSC_H
#define VMSHM_OSC_H

#include "ompi_config.h"
#include "mpi.h"
#include "ompi/mca/osc/osc.h"

/* The type of a number of elements. */
#include VMSHM_OMPI_RELEASE

/* The component of this name that is open, or NULL. */
ompi_osc_base_component_t *vmshm_osc_component(const char *name);

/* Where a window's module is kept. */
ompi_osc_base_module_t *vmshm_osc_module(struct ompi_win_t *win);

/* Whether some process of a communicator is on another host. */
bool vmshm_osc_spans_hosts(struct ompi_communicator_t *comm);

/* Collects len bytes of each process of a communicator. */
int vmshm_osc_exchange(struct ompi_communicator_t *comm, const void *mine, void *all, int len);

/* Puts a module behind a window. */
void vmshm_osc_set_module(struct ompi_win_t *win, ompi_osc_base_module_t *module);

/* A communicator of our own with the same processes, and its end. */
int vmshm_osc_dup(struct ompi_communicator_t *comm, struct ompi_communicator_t **copy);
void vmshm_osc_end(struct ompi_communicator_t *comm);

/* Waits for all processes of a communicator. */
int vmshm_osc_barrier(struct ompi_communicator_t *comm);

/* How many processes a group has, and which ranks of a communicator they are. */
int vmshm_osc_count(struct ompi_group_t *group);
int vmshm_osc_ranks(struct ompi_communicator_t *comm, struct ompi_group_t *group, int *ranks);

/* Whether the user wants the parts of a shared window apart from each other. */
bool vmshm_osc_is_apart(struct opal_info_t *info);

/* The request of something that is over. */
struct ompi_request_t *vmshm_osc_over(void);

/* Where the bytes of so many elements of a datatype begin, counted from their address, and how many there are up to the
   last; 0 for none, SIZE_MAX for more than can be. */
size_t vmshm_osc_span(vmshm_count_t count, const struct ompi_datatype_t *type, ptrdiff_t *first);

/* Copies elements of one datatype to those of another; MPI_ERR_TRUNCATE if these are fewer bytes. */
int vmshm_osc_copy(const void *from, vmshm_count_t count, struct ompi_datatype_t *type, void *to, vmshm_count_t to_count,
                   struct ompi_datatype_t *to_type);

/* Does an operation of MPI_Accumulate on memory that nobody else works on; MPI_ERR_TRUNCATE if there are more operands than
   elements, MPI_ERR_OP if the operation is not defined for them, MPI_ERR_TYPE if they are not all of one predefined datatype.
   OMPI_ERR_NOT_SUPPORTED for derived datatypes of pairs, of which Open MPI takes each part for an element. */
int vmshm_osc_combine(const void *origin, vmshm_count_t count, struct ompi_datatype_t *type, void *target,
                      vmshm_count_t target_count, struct ompi_datatype_t *target_type, struct ompi_op_t *op);

/* What a communicator is called by all its processes. */
unsigned vmshm_osc_name(struct ompi_communicator_t *comm);

/* A predefined datatype, as all processes know it by its name: how many bytes an element has, how far apart two of them are,
   and how many bytes of memory one takes up. */
struct vmshm_osc_number {
    struct ompi_datatype_t *datatype;
    size_t size;
    size_t extent;
    size_t held;
    int name;
};

/* The predefined datatype of this name; false if there is none. */
bool vmshm_osc_number(int name, struct vmshm_osc_number *number);

/* The one that all elements of a datatype are, and whether it is that itself; false if there is none. To be moved, elements of
   several datatypes are bytes. */
bool vmshm_osc_number_of(const struct ompi_datatype_t *type, bool moved, struct vmshm_osc_number *number,
                         bool *predefined);

/* Whether an operation of MPI's own is defined for elements of a predefined datatype. */
bool vmshm_osc_is_defined(const struct ompi_op_t *op, int name);

/* The number of an operation, which is the same in all processes. */
int vmshm_osc_op(const struct ompi_op_t *op);

/* Whether an operation leaves what there is, and whether it does that or replaces it. */
bool vmshm_osc_is_no_op(const struct ompi_op_t *op);
bool vmshm_osc_is_move(const struct ompi_op_t *op);

/* How many bytes so many elements have, without gaps. */
size_t vmshm_osc_size(vmshm_count_t count, const struct ompi_datatype_t *type);

/* Calls each for all runs of bytes of so many elements, counted from their address. */
void vmshm_osc_runs(vmshm_count_t count, const struct ompi_datatype_t *type,
                    void (*each)(void *context, ptrdiff_t at, size_t len), void *context);

/* Does an operation, by its number, on so many elements of the predefined datatype of this name, with operands that lie in memory as those do;
   false if there is no such operation. */
bool vmshm_osc_apply(int op, int name, const void *operands, void *target, vmshm_count_t count);

/* Replaces an element by the origin's if it is as compared with, in memory that nobody else works on; MPI_ERR_TYPE if the
   datatype is derived or has gaps. */
int vmshm_osc_swap(const void *origin, const void *compare, void *result, const struct ompi_datatype_t *type,
                   void *target);

/* How many bytes so many elements of a datatype are, if they lie in memory from the first on without gaps, and are as many
   as those of the target; else -1. */
ptrdiff_t vmshm_osc_plain(vmshm_count_t count, const struct ompi_datatype_t *type, vmshm_count_t target_count,
                          const struct ompi_datatype_t *target_type);

#endif
