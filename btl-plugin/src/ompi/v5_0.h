/* What Open MPI's headers call differently from release to release, as in the series 5.0. */

#ifndef VMSHM_OMPI_RELEASE_H
#define VMSHM_OMPI_RELEASE_H

#include "since_5_0.h"

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

#endif
