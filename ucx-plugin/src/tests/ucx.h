/* UCX as programs use it. */

#include <ucp/api/ucp.h>
