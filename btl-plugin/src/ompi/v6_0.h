/* What Open MPI's headers call differently from release to release, as in the series 6.0. */

#ifndef VMSHM_OMPI_RELEASE_H
#define VMSHM_OMPI_RELEASE_H

#include "since_5_0.h"

/* Whether a module for collective operations puts its functions into the communicator itself. */
#define VMSHM_OMPI_COLL_INSTALLS true

/* The type of a number of elements. */
typedef size_t vmshm_count_t;

/* Keeps a communicator that another one uses until MPI_Finalize has freed that one, and gives this up before ompi_comm_free,
   unless MPI_Finalize has done so. */
#define VMSHM_OMPI_COMM_KEEP(comm) OBJ_RETAIN(comm)
#define VMSHM_OMPI_COMM_LET_GO(comm)                                \
    do {                                                            \
        if (1 < ((opal_object_t *) (comm))->obj_reference_count) {  \
            OBJ_RELEASE(comm);                                      \
        }                                                           \
    } while (0)

#endif
