/*
 * pool.c - threads that share the work items of one task at a time.
 *
 * A job is cut into chunks, and these into two stretches. `ticket` holds the job's number in its upper
 * half and how many chunks of each stretch are taken in its lower half; a thread takes a chunk by counting the
 * ticket up with compare-and-swap. It reads the job before that: if the swap succeeds, the job still had a free chunk,
 * hence was not finished, hence nobody had begun to write the next one over it. So a job waits only for threads that
 * hold a chunk; one that the system has put aside between jobs delays nobody.
 *
 * Half of the threads begin with one stretch, half with the other, and help there when theirs is done. So two threads
 * work on neighbouring chunks each: what a chunk asked for ahead of time, and left in its core's caches, is what
 * the thread's next chunk begins with.
 */
#define _GNU_SOURCE

#include <sched.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "chunks.h"
#include "model.h"

#define SMALL_JOB 20000       /* cost below which waking others takes longer than the work */
#define LONG_PART 500000000   /* cost after which a lone thread looks whether to go on: tens of milliseconds */

#define PATIENCE_NS 2000000   /* how long take_turn() waits */

#define LOAD(field) __atomic_load_n(&(field), __ATOMIC_ACQUIRE)
#define STORE(field, value) __atomic_store_n(&(field), (value), __ATOMIC_RELEASE)

typedef struct worker {
    struct llmc_pool *pool;
    pthread_t thread;
    int index;
} worker;

struct llmc_pool {
    llmc_threads head;
    char gap0[56];   /* the words that all threads write get a cache line each */
    uint64_t ticket; /* job number << 32 | chunks taken of the second stretch << 16 | of the first */
    char gap1[56];
    uint32_t done;   /* chunks of this job that are finished */
    char gap2[60];
    llmc_task task;  /* the job; written while no chunk is free */
    const void *arguments;
    llmc_stop *stop;
    int64_t items, chunk;   /* as in cutting */
    uint32_t chunks, first;
    int threads, started; /* with the caller; workers that run */
    int pin;
    double spin; /* seconds */
    size_t scratch_bytes;
    unsigned char *scratch;
    worker *workers; /* [0] is the caller and has no thread */
    pthread_mutex_t lock;
    pthread_cond_t wake;
    int sleepers, end; /* changed with the lock held */
    pthread_mutex_t turn; /* held by the session that runs, where several share the threads */
};

static void relax(void) {
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield");
#endif
}

#ifndef LLMC_POOL_WINDOW
#define LLMC_POOL_WINDOW() /* a test makes the moments between ticket and fields long */
#endif

#define CLOSED 0xffffffffu /* as the lower half of a ticket: nothing may be taken */

/* The chunk that a thread should take, with in `*step` what its ticket counts up; -1: none is free. */
static int64_t free_chunk(uint32_t taken, uint32_t chunks, uint32_t first, int second, uint64_t *step) {
    const uint32_t begin[2] = {0, first}, end[2] = {first, chunks};
    int tries;
    for (tries = 0; tries < 2; tries++, second = !second) {
        uint32_t next = begin[second] + (second ? taken >> 16 : taken & STRETCH);
        *step = second ? STRETCH + 1 : 1;
        if (next < end[second]) return next;
    }
    return -1;
}

int llmc_stopped(llmc_stop *stop) {
    int why = __atomic_load_n(&stop->why, __ATOMIC_RELAXED);
    if (why || stop->until == 0 || llmc_now() < stop->until) return why;
    if (__atomic_compare_exchange_n(&stop->why, &why, LLMC_ERROR_DEADLINE, 0, __ATOMIC_RELAXED, __ATOMIC_RELAXED))
        return LLMC_ERROR_DEADLINE;
    return why;
}

/* Take a free chunk of the current job and run it. False: there is none; `*job` is the number of that job. */
static int run_chunk(llmc_pool *pool, int thread, uint32_t *job) {
    uint64_t ticket = LOAD(pool->ticket);
    for (;;) {
        llmc_task task;
        llmc_stop *stop;
        const void *arguments;
        int64_t chunk, number, items, range[2];
        uint32_t first;
        uint64_t step;
        LLMC_POOL_WINDOW();
        task = LOAD(pool->task);
        arguments = LOAD(pool->arguments);
        stop = LOAD(pool->stop);
        chunk = LOAD(pool->chunk);
        items = LOAD(pool->items);
        *job = (uint32_t)(ticket >> 32);
        first = LOAD(pool->first);
        number = free_chunk((uint32_t)ticket, LOAD(pool->chunks), first, 2 * thread >= pool->threads, &step);
        if (number < 0) return 0;
        cut_chunk(items, chunk, number, range);
        if (!__atomic_compare_exchange_n(&pool->ticket, &ticket, ticket + step, 0, __ATOMIC_ACQ_REL, __ATOMIC_ACQUIRE))
            continue;
        /* The caller's thread looks at the clock, where there is a deadline; the others see what it found. */
        if (!(thread ? __atomic_load_n(&stop->why, __ATOMIC_RELAXED) : llmc_stopped(stop)))
            task(arguments, range[0], range[1], pool->scratch + (size_t)thread * pool->scratch_bytes);
        __atomic_add_fetch(&pool->done, 1, __ATOMIC_RELEASE);
        return 1;
    }
}

static int changed(llmc_pool *pool, uint32_t job) {
    return (uint32_t)(__atomic_load_n(&pool->ticket, __ATOMIC_SEQ_CST) >> 32) != job || LOAD(pool->end);
}

/* Wait, first awake and then asleep, for another job than `job` or for the end. */
static void wait_for_job(llmc_pool *pool, uint32_t job) {
    double until = llmc_now() + pool->spin;
    do {
        int i;
        for (i = 0; i < 64; i++) {
            if (changed(pool, job)) return;
            relax();
        }
    } while (llmc_now() < until);
    pthread_mutex_lock(&pool->lock);
    /* Either the publisher sees this count, or we see its ticket: both are sequentially consistent. */
    __atomic_add_fetch(&pool->sleepers, 1, __ATOMIC_SEQ_CST);
    while (!changed(pool, job)) pthread_cond_wait(&pool->wake, &pool->lock);
    __atomic_sub_fetch(&pool->sleepers, 1, __ATOMIC_SEQ_CST);
    pthread_mutex_unlock(&pool->lock);
}

static void *work(void *argument) {
    worker *self = (worker *)argument;
    llmc_pool *pool = self->pool;
    uint32_t job;
    if (pool->pin) llmc_pin_thread(self->index); /* a wish: running elsewhere is slower, not wrong */
    llmc_float_mode();
    while (!LOAD(pool->end))
        if (!run_chunk(pool, self->index, &job)) wait_for_job(pool, job);
    return NULL;
}

/* The chunks left are in other threads' hands: wait awake, then let them have this core. */
static void wait_for_chunks(llmc_pool *pool) {
    const struct timespec nap = {0, 20000};
    int round;
    for (round = 0; LOAD(pool->done) != pool->chunks; round++) {
        if (round < 2000)
            relax();
        else if (round < 2100)
            sched_yield();
        else
            nanosleep(&nap, NULL);
    }
}

/* On the calling thread alone: at once, or if that takes long in parts, so that it can be given up. */
static void run_alone(llmc_pool *pool, llmc_task task, const void *arguments, int64_t items, int64_t cost,
                      llmc_stop *stop) {
    int64_t part = items, begin;
    if ((double)items * (double)cost > LONG_PART) part = LONG_PART / cost + 1;
    for (begin = 0; begin < items && !llmc_stopped(stop); begin += part)
        task(arguments, begin, items - begin < part ? items : begin + part, pool->scratch);
}

static void run(llmc_pool *pool, llmc_task task, const void *arguments, int64_t items, int64_t cost, llmc_stop *stop) {
    uint32_t job = (uint32_t)(LOAD(pool->ticket) >> 32) + 1;
    cutting c;
    if (items <= 0) return;
    if (cost < 1) cost = 1;
    if (pool->started == 0 || items == 1 || items < SMALL_JOB / cost) {
        run_alone(pool, task, arguments, items, cost, stop);
        return;
    }
    c = plan(items, cost, pool->threads);
    /* A worker may hold the last job's ticket still: were it to read the new job's fields beside it, the old
     * ticket could pass for a free chunk. Closing it first makes the exchange of such a worker fail. */
    STORE(pool->ticket, (uint64_t)(job - 1) << 32 | CLOSED);
    STORE(pool->task, task);
    STORE(pool->arguments, arguments);
    STORE(pool->stop, stop);
    STORE(pool->items, items);
    STORE(pool->chunk, c.chunk);
    STORE(pool->first, c.first);
    STORE(pool->chunks, c.chunks);
    STORE(pool->done, 0);
    LLMC_POOL_WINDOW();
    __atomic_store_n(&pool->ticket, (uint64_t)job << 32, __ATOMIC_SEQ_CST);
    if (__atomic_load_n(&pool->sleepers, __ATOMIC_SEQ_CST)) {
        pthread_mutex_lock(&pool->lock);
        pthread_cond_broadcast(&pool->wake);
        pthread_mutex_unlock(&pool->lock);
    }
    while (run_chunk(pool, 0, &job)) continue;
    wait_for_chunks(pool);
}

static llmc_status start_workers(llmc_pool *pool, llmc_error *error) {
    int i;
    for (i = 1; i < pool->threads; i++) {
        worker *w = &pool->workers[i];
        w->pool = pool;
        w->index = i;
        if (pthread_create(&w->thread, NULL, work, w) != 0)
            return llmc_fail(error, LLMC_ERROR_MEMORY, "ask for fewer threads", "cannot start thread %d of %d", i + 1,
                             pool->threads);
        pool->started++;
    }
    return LLMC_OK;
}

static int threads(const llmc_pool *pool) {
    return pool->threads;
}

/* The workers are idle, or about to be: they read `scratch` only when they have taken a chunk. */
static llmc_status reserve(llmc_pool *pool, size_t scratch_bytes, llmc_error *error) {
    size_t bytes = (scratch_bytes / 64 + 1) * 64; /* one line more, so that no two threads share one */
    void *scratch = NULL;
    if (pool->scratch && bytes <= pool->scratch_bytes) return LLMC_OK;
    if (bytes > SIZE_MAX / (size_t)pool->threads || posix_memalign(&scratch, 64, bytes * (size_t)pool->threads) != 0)
        return llmc_fail_memory(error, bytes);
    free(pool->scratch);
    pool->scratch = (unsigned char *)scratch;
    pool->scratch_bytes = bytes;
    return LLMC_OK;
}

static int take_turn(llmc_pool *pool) {
    struct timespec until;
    if (pthread_mutex_trylock(&pool->turn) == 0) return 1;
    clock_gettime(CLOCK_REALTIME, &until); /* the clock that the wait goes by */
    until.tv_nsec += PATIENCE_NS;
    until.tv_sec += until.tv_nsec / 1000000000;
    until.tv_nsec %= 1000000000;
    return pthread_mutex_timedlock(&pool->turn, &until) == 0;
}

static void end_turn(llmc_pool *pool) {
    pthread_mutex_unlock(&pool->turn);
}

const llmc_pool_functions llmc_pool_can = {LLMC_VERSION, run, threads, reserve, take_turn, end_turn};

llmc_status llmc_pool_open(llmc_pool **out, int threads, int spin_us, int pin, size_t scratch_bytes,
                           llmc_error *error) {
    llmc_pool *pool = (llmc_pool *)calloc(1, sizeof *pool);
    llmc_status status;
    if (!pool) return llmc_fail_memory(error, sizeof *pool);
    pool->head.functions = &llmc_pool_can;
    pool->threads = threads;
    pool->pin = pin;
    pool->spin = spin_us < 0 ? 0 : 1e-6 * spin_us;
    pool->workers = (worker *)calloc((size_t)threads, sizeof *pool->workers);
    status = pool->workers ? reserve(pool, scratch_bytes, error) : llmc_fail_memory(error, sizeof *pool->workers);
    if (status != LLMC_OK) {
        llmc_pool_abandon(pool);
        return status;
    }
    pthread_mutex_init(&pool->lock, NULL);
    pthread_mutex_init(&pool->turn, NULL);
    pthread_cond_init(&pool->wake, NULL);
    status = start_workers(pool, error);
    if (status != LLMC_OK)
        llmc_pool_close(pool);
    else
        *out = pool;
    return status;
}

void llmc_pool_abandon(llmc_pool *pool) {
    free(pool->scratch);
    free(pool->workers);
    free(pool);
}

void llmc_pool_close(llmc_pool *pool) {
    int i;
    pthread_mutex_lock(&pool->lock);
    STORE(pool->end, 1);
    pthread_cond_broadcast(&pool->wake);
    pthread_mutex_unlock(&pool->lock);
    for (i = 1; i <= pool->started; i++) pthread_join(pool->workers[i].thread, NULL);
    pthread_cond_destroy(&pool->wake);
    pthread_mutex_destroy(&pool->lock);
    pthread_mutex_destroy(&pool->turn);
    llmc_pool_abandon(pool);
}
