/* What Open MPI has only as macros, inline functions and variadic functions, as plain functions. */

#include "shim.h"

#include <stdlib.h>
#include <string.h>

#include "ompi/mca/pml/base/base.h"
#include "opal/mca/base/mca_base_component_repository.h"
#include "opal/util/output.h"

int vmshm_ompi_publish(const mca_base_component_t *component, const void *data, size_t len)
{
    int rc;

    OPAL_MODEX_SEND(rc, VMSHM_OMPI_GLOBAL, component, (void *) data, len);
    return rc;
}

int vmshm_ompi_lookup(const mca_base_component_t *component, const opal_proc_t *proc, void *data, size_t len)
{
    uint8_t *found = NULL;
    size_t found_len = 0;
    int rc;

    OPAL_MODEX_RECV(rc, component, &proc->proc_name, &found, &found_len);
    if (OPAL_SUCCESS == rc && (NULL == found || found_len != len)) {
        rc = OPAL_ERR_NOT_FOUND;
    }
    if (OPAL_SUCCESS == rc) {
        memcpy(data, found, len);
    }
    free(found);
    return rc;
}

bool vmshm_ompi_contiguous(opal_convertor_t *convertor, void **data)
{
    if (opal_convertor_need_buffers(convertor)) {
        return false;
    }
    opal_convertor_get_current_pointer(convertor, data);
    return true;
}

int vmshm_ompi_pack(opal_convertor_t *convertor, void *to, size_t *len)
{
    struct iovec iov = {.iov_base = to, .iov_len = *len};
    uint32_t count = 1;

    return opal_convertor_pack(convertor, &iov, &count, len);
}

const char *vmshm_ompi_this_host(void)
{
    return NULL != opal_process_info.nodename ? opal_process_info.nodename : "this host";
}

bool vmshm_ompi_threads(void)
{
    return opal_using_threads();
}

bool vmshm_ompi_others_read(const mca_btl_base_module_t *module, bool kernel_reads)
{
    mca_btl_base_selected_module_t *item;

    OPAL_LIST_FOREACH(item, &mca_btl_base_modules_initialized, mca_btl_base_selected_module_t) {
        const mca_btl_base_module_t *other = item->btl_module;
        /* self reads its own process's memory, without the kernel. */
        bool self = 0 == strcmp(item->btl_component->btl_version.mca_component_name, "self");
        if (other != module && (NULL != other->btl_register_mem || (!kernel_reads && !self && NULL != other->btl_get))) {
            return true;
        }
    }
    return false;
}

const char *vmshm_ompi_job_directory(void)
{
    return opal_process_info.job_session_dir;
}

void vmshm_ompi_verbose(const char *line)
{
    opal_output_verbose(10, opal_btl_base_framework.framework_output, "%s", line);
}

const char *vmshm_ompi_selection(void)
{
    return opal_btl_base_framework.framework_selection;
}

const char *vmshm_ompi_pml_selection(void)
{
    static char *selection = NULL;

    if (mca_base_framework_is_registered(&ompi_pml_base_framework)) {
        return ompi_pml_base_framework.framework_selection;
    }
    /* As the framework registers it, whose registration then gives the parameter the framework's own place. */
    if (NULL == selection) {
        (void) mca_base_var_register(ompi_pml_base_framework.framework_project, ompi_pml_base_framework.framework_name, NULL, NULL,
                                     "Components of the pml framework that may run (none: all)", MCA_BASE_VAR_TYPE_STRING, NULL,
                                     0, MCA_BASE_VAR_FLAG_SETTABLE, OPAL_INFO_LVL_2, MCA_BASE_VAR_SCOPE_ALL_EQ, &selection);
    }
    return selection;
}

void vmshm_ompi_with_pml(const char *name, void (*call)(void))
{
    const mca_base_component_t *const *built_in = (const mca_base_component_t *const *) ompi_pml_base_framework.framework_static_components;
    mca_base_component_repository_item_t *item;
    opal_list_t *found = NULL;

    for (; NULL != built_in && NULL != *built_in; ++built_in) {
        if (0 == strcmp((*built_in)->mca_component_name, name)) {
            call();
            return;
        }
    }
    if (OPAL_SUCCESS != mca_base_component_repository_get_components(&ompi_pml_base_framework, &found) || NULL == found) {
        return;
    }
    OPAL_LIST_FOREACH(item, found, mca_base_component_repository_item_t) {
        opal_dl_handle_t *handle = NULL;
        char *message = NULL;
        if (0 == strcmp(item->ri_name, name)) {
            /* What does not open, Open MPI will tell the user. */
            if (OPAL_SUCCESS == opal_dl_open(item->ri_path, true, false, &handle, &message)) {
                call();
                opal_dl_close(handle);
            }
            return;
        }
    }
}

const char *vmshm_ompi_name(const opal_proc_t *proc)
{
    return OPAL_NAME_PRINT(proc->proc_name);
}

const char *vmshm_ompi_host(const opal_proc_t *proc)
{
    const char *host = vmshm_ompi_hostname(proc);

    return NULL != host ? host : "an unknown host";
}
