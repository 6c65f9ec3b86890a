/*
 * pool_told.c - who tells threads where to run, on a made machine of 8 processors: prints where two workers may run
 * after each word, as bits.
 *
 *     pool_told WORDS...     "at N": the caller is on processor N, and runs a job
 *                            "all MASK", "caller MASK", "main MASK", "worker1 MASK", "worker2 MASK": told by somebody
 */
#define _GNU_SOURCE
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

static int here(void);
static int get(pid_t thread, size_t size, cpu_set_t *set);
static int get_of(pthread_t thread, size_t size, cpu_set_t *set);
static int set_of(pthread_t thread, size_t size, const cpu_set_t *set);
#define sched_getcpu here
#define sched_getaffinity get
#define pthread_getaffinity_np get_of
#define pthread_setaffinity_np set_of
#include "pool.c"

enum { CALLER, MAIN, WORKER1, WORKER2, ALL };
static const char *const names[] = {"caller", "main", "worker1", "worker2", "all"};
static unsigned masks[ALL] = {0xff, 0xff, 0xff, 0xff};
static int cpu;
static llmc_pool *pool;

static int here(void) {
    return cpu;
}

static void unpack(unsigned mask, cpu_set_t *set) {
    int i;
    CPU_ZERO(set);
    for (i = 0; i < 8; i++)
        if (mask >> i & 1) CPU_SET((size_t)i, set);
}

static int get(pid_t thread, size_t size, cpu_set_t *set) {
    (void)size;
    unpack(masks[thread ? MAIN : CALLER], set);
    return 0;
}

static unsigned *mask_of(pthread_t thread) {
    return &masks[pthread_equal(thread, pool->workers[1].thread) ? WORKER1 : WORKER2];
}

static int get_of(pthread_t thread, size_t size, cpu_set_t *set) {
    (void)size;
    unpack(*mask_of(thread), set);
    return 0;
}

static int set_of(pthread_t thread, size_t size, const cpu_set_t *set) {
    int i;
    (void)size;
    *mask_of(thread) = 0;
    for (i = 0; i < 8; i++) *mask_of(thread) |= (unsigned)CPU_ISSET((size_t)i, set) << i;
    return 0;
}

int main(int argc, char **argv) {
    llmc_error error;
    int i, who;
    cpu = -1; /* not known yet: nothing is done at the start */
    if (llmc_pool_open(&pool, 3, -1, 0, 64, &error) != LLMC_OK) return 2;
    for (i = 1; i + 1 < argc; i += 2) {
        unsigned number = (unsigned)strtoul(argv[i + 1], NULL, 0);
        if (!strcmp(argv[i], "at")) {
            cpu = (int)number;
            make_room(pool);
            printf("%02x %02x\n", masks[WORKER1], masks[WORKER2]);
            continue;
        }
        for (who = 0; who < ALL; who++)
            if (!strcmp(argv[i], names[who]) || !strcmp(argv[i], "all")) masks[who] = number;
    }
    llmc_pool_close(pool);
    return 0;
}
