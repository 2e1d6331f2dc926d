/* The devel headers of Open MPI 5.0 include a header of this name and lack it. What they need of it is how a thread gives
   way to others. */

#ifndef VMSHM_THREADS_PTHREADS_THREADS_H
#define VMSHM_THREADS_PTHREADS_THREADS_H

#include <sched.h>

static inline void opal_thread_yield(void)
{
    sched_yield();
}

#endif
