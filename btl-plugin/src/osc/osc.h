/* What the one-sided component needs of Open MPI's headers, with their inline functions as functions. See osc.c. */

#ifndef VMSHM_OSC_H
#define VMSHM_OSC_H

#include "ompi_config.h"
#include "mpi.h"
#include "ompi/mca/osc/osc.h"

/* The component of this name that is open, or NULL. */
ompi_osc_base_component_t *vmshm_osc_component(const char *name);

/* Where a window's module is kept. */
ompi_osc_base_module_t *vmshm_osc_module(struct ompi_win_t *win);

/* Whether some process of a communicator is on another host. */
bool vmshm_osc_spans_hosts(struct ompi_communicator_t *comm);

/* Collects len bytes of each process of a communicator. */
int vmshm_osc_exchange(struct ompi_communicator_t *comm, const void *mine, void *all, int len);

/* How many bytes so many elements of a datatype are, if they lie in memory from the first on without gaps, and are as many
   as those of the target; else -1. */
ptrdiff_t vmshm_osc_plain(int count, const struct ompi_datatype_t *type, int target_count,
                          const struct ompi_datatype_t *target_type);

#endif
