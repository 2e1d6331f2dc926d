/* Open MPI's op.h includes a header of this name, which its devel headers lack. Of it, op.h needs this conversion of a
   number to Fortran's. */

#ifndef VMSHM_FINT_2_INT_H
#define VMSHM_FINT_2_INT_H

#define OMPI_INT_2_FINT(number) ((MPI_Fint) (number))

#endif
