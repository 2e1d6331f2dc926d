/* What the headers of the series 5.0 and 6.0 call differently from those of 4.1. */

#ifndef VMSHM_OMPI_SINCE_5_0_H
#define VMSHM_OMPI_SINCE_5_0_H

#include <stdio.h>
#include <stdlib.h>

#include "ompi/runtime/params.h"
#include "opal/mca/pmix/pmix-internal.h"
#include "opal/mca/threads/mutex.h"
#include "opal/util/proc.h"

#define VMSHM_OMPI_GLOBAL PMIX_GLOBAL

/* Words of the longest of ob1's headers: a communicator's long number comes before the rest. */
#define VMSHM_OMPI_OB1_HEADER 10

/* The number by which all processes know a communicator that was made from another one. Only those that were made from a
   group alone, and these are not asked, have one that differs between processes. */
#define VMSHM_OMPI_COMM_NUMBER(comm) ompi_comm_get_local_cid(comm)

/* Whether a job goes on after the loss of processes: mpirun --with-ft ulfm. */
#if OPAL_ENABLE_FT_MPI
#define VMSHM_OMPI_SURVIVES ompi_ftmpi_enabled
#else
#define VMSHM_OMPI_SURVIVES false
#endif

/* The host of a process, or NULL; valid until the thread asks again. Open MPI gives a copy. */
static inline const char *vmshm_ompi_hostname(const opal_proc_t *proc)
{
    static __thread char kept[256];
    char *host = opal_get_proc_hostname(proc);

    if (NULL == host) {
        return NULL;
    }
    snprintf(kept, sizeof kept, "%s", host);
    free(host);
    return kept;
}

#endif
