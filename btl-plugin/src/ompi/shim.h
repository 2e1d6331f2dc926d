/* What Open MPI has only as macros and inline functions, as functions. See shim.c. */

#ifndef VMSHM_OMPI_SHIM_H
#define VMSHM_OMPI_SHIM_H

#include "opal_config.h"
#include "opal/class/opal_bitmap.h"
#include "opal/datatype/opal_convertor.h"
#include "opal/mca/base/base.h"
#include "opal/mca/base/mca_base_pvar.h"
#include "opal/mca/btl/base/base.h"
#include "opal/mca/btl/base/btl_base_error.h"
#include "opal/mca/btl/btl.h"
#include "opal/util/proc.h"

/* What the release calls differently: v4_1.h and so on. */
#include VMSHM_OMPI_RELEASE

/* Publishes data about this process for all processes of the job, and of jobs that join it. */
int vmshm_ompi_publish(const mca_base_component_t *component, const void *data, size_t len);

/* Gets what a process has published; it must have exactly len bytes. */
int vmshm_ompi_lookup(const mca_base_component_t *component, const opal_proc_t *proc, void *data, size_t len);

/* Whether the convertor's next bytes lie in memory as they are; then *data is the first of them. */
bool vmshm_ompi_contiguous(opal_convertor_t *convertor, void **data);

/* Packs up to *len bytes; *len becomes the number packed. Negative on error. */
int vmshm_ompi_pack(opal_convertor_t *convertor, void *to, size_t *len);

/* Who asks for a get: see vmshm_ompi_room. */
enum {
    /* Not ob1: a component that knows how much room it has. */
    VMSHM_OMPI_ROOM_OTHER,
    /* ob1, and *room says how many bytes its receiver has room for. */
    VMSHM_OMPI_ROOM_KNOWN,
    /* ob1, but not one that we know. */
    VMSHM_OMPI_ROOM_UNKNOWN,
};

/* Says who asks for size bytes from proc, with this context and data for the callback, and how many of them may be written
   to local. */
unsigned int vmshm_ompi_room(const opal_proc_t *proc, const void *context, const void *data, const void *local, size_t size,
                    size_t *room);

/* The name of this host, as Open MPI knows it. */
const char *vmshm_ompi_this_host(void);

/* Whether Open MPI serves several threads at a time. */
bool vmshm_ompi_threads(void);

/* Whether a module other than this one registers memory with hardware, or, unless the kernel can read it for another
   process, has the kernel do that. */
bool vmshm_ompi_others_read(const mca_btl_base_module_t *module, bool kernel_reads);

/* A directory of this job on this host, or NULL. */
const char *vmshm_ompi_job_directory(void);

/* Writes one line to those who set btl_base_verbose. */
void vmshm_ompi_verbose(const char *line);

/* The list of components that the user asked for with the parameter btl, or NULL. */
const char *vmshm_ompi_selection(void);

/* The list of components that the user asked for with the parameter pml, or NULL: also before that framework is opened. */
const char *vmshm_ompi_pml_selection(void);

/* Calls back while the pml component of this name is in the process with the libraries that it needs; not if there is none. */
void vmshm_ompi_with_pml(const char *name, void (*call)(void));

/* The name of a process, as Open MPI prints it. Valid until the next few calls. */
const char *vmshm_ompi_name(const opal_proc_t *proc);

/* The host of a process, or "an unknown host". */
const char *vmshm_ompi_host(const opal_proc_t *proc);

#endif
