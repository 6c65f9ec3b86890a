/*
 * pool_room.c - workers that slept wake up on other processors than the caller's: runs a job from each processor in
 * turn and prints on how many a worker may run by then, and whether one was beside the caller.
 *
 *     pool_room THREADS [pin | narrow]
 *
 * With `narrow` somebody has told the worker to stay on the last processor.
 */
#define _GNU_SOURCE
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>

#include "pool.c"

static int caller_cpu, shared;

static void work_there(const void *arguments, int64_t begin, int64_t end, void *scratch) {
    double until = llmc_now() + 1e-4;
    (void)arguments, (void)begin, (void)end;
    while (llmc_now() < until) continue;
    if (*(unsigned char *)scratch && sched_getcpu() == caller_cpu) __atomic_store_n(&shared, 1, __ATOMIC_RELAXED);
}

static void may_run_on(const cpu_set_t *set, int cpu) {
    cpu_set_t one = *set;
    if (cpu >= 0) {
        CPU_ZERO(&one);
        CPU_SET((size_t)cpu, &one);
    }
    if (sched_setaffinity(0, sizeof one, &one) != 0) exit(3);
}

static int argc;
static char **argv;

/* Not the main thread: where that one is moved with the caller, the workers are not to leave where all are. */
static void *call(void *unused) {
    llmc_stop never = {LLMC_OK, 0};
    const struct timespec nap = {0, 20000000};
    llmc_pool *pool = NULL;
    llmc_error error;
    cpu_set_t all, worker;
    int threads = argc > 1 ? atoi(argv[1]) : 2, cpu, last = 0, i;
    const char *how = argc > 2 ? argv[2] : "";
    (void)unused;
    if (sched_getaffinity(0, sizeof all, &all) != 0) exit(3);
    if (llmc_pool_open(&pool, threads, -1, !strcmp(how, "pin"), 64, &error) != LLMC_OK) exit(2);
    for (i = 1; i < threads; i++) pool->scratch[(size_t)i * pool->scratch_bytes] = 1; /* tells who is a worker */
    for (cpu = 0; cpu < CPU_SETSIZE; cpu++)
        if (CPU_ISSET((size_t)cpu, &all)) last = cpu;
    CPU_ZERO(&worker);
    CPU_SET((size_t)last, &worker);
    if (!strcmp(how, "narrow")) {
        may_run_on(&all, last); /* so that we keep the worker off it, before it is told to stay there */
        nanosleep(&nap, NULL);
        llmc_pool_can.run(pool, work_there, NULL, 32, 20000, &never);
        pthread_setaffinity_np(pool->workers[1].thread, sizeof worker, &worker);
        pool->left = -1; /* as if the caller came from elsewhere */
    }
    for (cpu = 0; cpu < CPU_SETSIZE; cpu++) {
        if (!CPU_ISSET((size_t)cpu, &all)) continue;
        may_run_on(&all, cpu);
        caller_cpu = cpu;
        nanosleep(&nap, NULL); /* the workers fall asleep */
        llmc_pool_can.run(pool, work_there, NULL, 32, 20000, &never);
        pthread_getaffinity_np(pool->workers[1].thread, sizeof worker, &worker);
        printf("%d of %d%s\n", CPU_COUNT(&worker), CPU_COUNT(&all), shared ? ", beside the caller" : "");
        if (!CPU_ISSET((size_t)last, &worker) && !strcmp(how, "narrow")) puts("moved from where it was told to stay");
    }
    may_run_on(&all, -1);
    llmc_pool_close(pool);
    return NULL;
}

int main(int count, char **words) {
    pthread_t caller;
    argc = count;
    argv = words;
    return pthread_create(&caller, NULL, call, NULL) || pthread_join(caller, NULL);
}
