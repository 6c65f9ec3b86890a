/*
 * pool_stress.c - many small jobs of changing size on more threads than cores: every item of every job must be done
 * once, and each job must end. Built with a pool whose threads pause between reading a ticket and taking it.
 */
#define _GNU_SOURCE

#include <sched.h>
#include <stdio.h>
#include <stdlib.h>

static void window(void);
#define LLMC_POOL_WINDOW() window()
#include "pool.c"

static __thread unsigned seed = 1;

static void window(void) {
    seed = seed * 1664525u + 1013904223u;
    if (seed >> 30 == 0) sched_yield();
}

typedef struct job {
    int64_t items;
    unsigned char done[4096];
} job;

static void count(const void *arguments, int64_t begin, int64_t end, void *scratch) {
    job *j = (job *)arguments;
    (void)scratch;
    for (; begin < end; begin++) __atomic_add_fetch(&j->done[begin], 1, __ATOMIC_RELAXED);
}

int main(int argc, char **argv) {
    static job jobs[64];
    llmc_stop never = {LLMC_OK, 0};
    llmc_pool *pool = NULL;
    llmc_error error;
    int rounds = argc > 1 ? atoi(argv[1]) : 1000, threads = argc > 2 ? atoi(argv[2]) : 8, round;
    if (llmc_pool_open(&pool, threads, 0, 0, 64, &error) != LLMC_OK) return 2;
    for (round = 0; round < rounds; round++) {
        job *j = &jobs[round % 64];
        int64_t i;
        memset(j, 0, sizeof *j);
        j->items = 2 + (round * 2654435761u >> 7) % 4000;
        llmc_pool_can.run(pool, count, j, j->items, 20000, &never);
        for (i = 0; i < 4096; i++)
            if (j->done[i] != (i < j->items)) {
                printf("round %d: item %d of %d was done %d times\n", round, (int)i, (int)j->items, j->done[i]);
                return 1;
            }
    }
    llmc_pool_close(pool);
    puts("every item was done once");
    return 0;
}
