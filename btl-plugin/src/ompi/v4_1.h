/* What Open MPI's headers call differently from release to release, as in the series 4.1. */

#ifndef VMSHM_OMPI_RELEASE_H
#define VMSHM_OMPI_RELEASE_H

#include "opal/mca/pmix/pmix.h"
#include "opal/threads/mutex.h"
#include "opal/util/proc.h"

#define VMSHM_OMPI_GLOBAL OPAL_PMIX_GLOBAL

/* Words of the longest of ob1's headers. */
#define VMSHM_OMPI_OB1_HEADER 7

/* The number by which all processes know a communicator that was made from another one. */
#define VMSHM_OMPI_COMM_NUMBER(comm) ompi_comm_get_cid(comm)

/* Whether a job goes on after the loss of processes. */
#define VMSHM_OMPI_SURVIVES false

/* Whether a module for collective operations puts its functions into the communicator itself. */
#define VMSHM_OMPI_COLL_INSTALLS false

/* The type of a number of elements. */
typedef int vmshm_count_t;

/* Keeps a communicator that another one uses until MPI_Finalize has freed that one; ompi_comm_free gives up both references. */
#define VMSHM_OMPI_COMM_KEEP(comm)        \
    do {                                  \
        OMPI_COMM_SET_EXTRA_RETAIN(comm); \
        OBJ_RETAIN(comm);                 \
    } while (0)
#define VMSHM_OMPI_COMM_LET_GO(comm)

/* The host of a process, or NULL. */
static inline const char *vmshm_ompi_hostname(const opal_proc_t *proc)
{
    return opal_get_proc_hostname(proc);
}

#endif
