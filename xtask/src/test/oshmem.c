/* Each processing element puts to the next, gets what it has put, counts at all others, and waits for a flag. It says which file its
 * symmetric heap lies in. */

#include <shmem.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define WORDS (1 << 16)

static long counter, flag;

static void tell_file(int me, const void *memory)
{
    FILE *maps = fopen("/proc/self/maps", "r");
    char line[512], name[256];
    unsigned long from, to;

    while (fgets(line, sizeof line, maps) != NULL) {
        strcpy(name, "no file");
        if (sscanf(line, "%lx-%lx %*s %*s %*s %*s %255s", &from, &to, name) >= 2 && from <= (unsigned long) memory &&
            (unsigned long) memory < to) {
            printf("element %d: heap in %s\n", me, name);
        }
    }
    fclose(maps);
}

int main(void)
{
    shmem_init();
    const int me = shmem_my_pe(), all = shmem_n_pes(), next = (me + 1) % all, before = (me + all - 1) % all;
    long *heap = shmem_malloc((WORDS + 1) * sizeof *heap);
    long *own = malloc(WORDS * sizeof *own), *got = malloc(WORDS * sizeof *got);
    long wrong = 0, wanted = 0;

    for (int i = 0; i < WORDS; i++) {
        own[i] = me * 1000003L + i;
    }
    heap[WORDS] = 0;
    shmem_barrier_all();
    shmem_putmem(heap, own, WORDS * sizeof *own, next);
    shmem_barrier_all();
    shmem_getmem(got, heap, WORDS * sizeof *got, next);
    for (int i = 0; i < WORDS; i++) {
        wrong += heap[i] != before * 1000003L + i;
        wrong += got[i] != own[i];
    }
    for (int i = 0; i < 1000; i++) {
        shmem_long_atomic_add(&counter, 1, i % all);
        wanted += i % all == me ? all : 0;
        wrong += shmem_long_atomic_fetch_inc(&heap[WORDS], 0) < 0;
    }
    shmem_barrier_all();
    wrong += counter != wanted;
    wrong += me == 0 && heap[WORDS] != 1000L * all;
    shmem_long_p(&flag, 1, next);
    shmem_long_wait_until(&flag, SHMEM_CMP_EQ, 1);
    tell_file(me, heap);
    printf("element %d: %ld wrong\n", me, wrong);
    fflush(stdout);
    shmem_finalize();
    return 0;
}
