/* Says how many of the job's processes are on the same node as MPI sees it. */
#include <mpi.h>
#include <stdio.h>

int main(int argc, char **argv)
{
    MPI_Comm node;
    int rank, size;

    MPI_Init(&argc, &argv);
    MPI_Comm_rank(MPI_COMM_WORLD, &rank);
    MPI_Comm_split_type(MPI_COMM_WORLD, MPI_COMM_TYPE_SHARED, 0, MPI_INFO_NULL, &node);
    MPI_Comm_size(node, &size);
    printf("rank %d shares memory with %d other\n", rank, size - 1);
    MPI_Comm_free(&node);
    MPI_Finalize();
    return 0;
}
