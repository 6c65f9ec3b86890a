/*
 * pool.c - threads that share the work items of one task at a time.
 *
 * A job is cut into chunks, and these into two stretches. The ticket of a stretch holds the job's number in its upper
 * half and how many of its chunks are taken in its lower half; a thread takes a chunk by counting the ticket up with
 * compare-and-swap. It reads the job before that: if the swap succeeds, the job still had a free chunk, hence was not
 * finished, hence nobody had begun to write the next one over it. So a job waits only for threads that hold a chunk;
 * one that the system has put aside between jobs delays nobody.
 *
 * Half of the threads begin with one stretch, half with the other, and help there when theirs is done. So two threads
 * work on neighbouring chunks each: what a chunk asked for ahead of time, and left in its core's caches, is what
 * the thread's next chunk begins with.
 *
 * A word that two cores write goes to and fro between their caches, which takes as long as hundreds of instructions
 * each time. So each stretch has a ticket of its own, and a worker says once for all of its chunks that they are done.
 *
 * Workers that cost more than they gain, since others want their cores, are left asleep for a while (worth.h).
 */
#define _GNU_SOURCE

#include <sched.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "chunks.h"
#include "model.h"
#include "room.h"
#include "worth.h"

#define SMALL_JOB 20000       /* cost below which waking others takes longer than the work */
#define LONG_PART 500000000   /* cost after which a lone thread looks whether to go on: tens of milliseconds */
#define PATIENCE_NS 2000000   /* how long take_turn() waits */

#define LOAD(field) __atomic_load_n(&(field), __ATOMIC_ACQUIRE)
#define STORE(field, value) __atomic_store_n(&(field), (value), __ATOMIC_RELEASE)

typedef struct worker {
    struct llmc_pool *pool;
    pthread_t thread;
    int index;
    places may; /* run there */
} worker;

typedef struct stretch {
    uint64_t ticket; /* job number << 32 | chunks taken of this stretch */
    char gap[56];
} stretch;

/* Aligned to cache lines: what the workers write, what the caller writes and what stays are in lines of their own. */
struct llmc_pool {
    llmc_threads head;
    char gap0[56];
    stretch stretches[2];
    uint64_t done; /* chunks that workers have finished, of all jobs: only they count it up */
    char gap1[56];
    llmc_task task; /* the job; written while no chunk is free */
    const void *arguments;
    llmc_stop *stop;
    int64_t items, chunk; /* as in cutting */
    uint32_t chunks, first;
    uint64_t due; /* what `done` was when the last job had ended: the caller's */
    char gap2[8];
    worth workers_worth; /* the caller's too */
    char gap3[24];
    int threads, started; /* with the caller; workers that run */
    int pin;
    int left;    /* the processor that is left to the caller; -1: none */
    pid_t owner; /* the process that has the workers */
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

/* The stretch that a thread begins with. */
static int own_stretch(const llmc_pool *pool, int thread) {
    return 2 * thread >= pool->threads;
}

int llmc_stopped(llmc_stop *stop) {
    int why = __atomic_load_n(&stop->why, __ATOMIC_RELAXED);
    if (why || stop->until == 0 || llmc_now() < stop->until) return why;
    if (__atomic_compare_exchange_n(&stop->why, &why, LLMC_ERROR_DEADLINE, 0, __ATOMIC_RELAXED, __ATOMIC_RELAXED))
        return LLMC_ERROR_DEADLINE;
    return why;
}

/* Take a free chunk of a stretch and run it. False: there is none; `*job` is the number of the job it was looked for in. */
static int run_chunk(llmc_pool *pool, int second, int thread, uint32_t *job) {
    uint64_t *place = &pool->stretches[second].ticket, ticket = LOAD(*place);
    for (;;) {
        llmc_task task;
        llmc_stop *stop;
        const void *arguments;
        int64_t chunk, number, items, range[2];
        uint32_t first, chunks;
        LLMC_POOL_WINDOW();
        task = LOAD(pool->task);
        arguments = LOAD(pool->arguments);
        stop = LOAD(pool->stop);
        chunk = LOAD(pool->chunk);
        items = LOAD(pool->items);
        first = LOAD(pool->first);
        chunks = LOAD(pool->chunks);
        *job = (uint32_t)(ticket >> 32);
        number = (int64_t)(uint32_t)ticket + (second ? first : 0);
        if (number >= (second ? chunks : first)) return 0;
        cut_chunk(items, chunk, number, range);
        if (!__atomic_compare_exchange_n(place, &ticket, ticket + 1, 0, __ATOMIC_ACQ_REL, __ATOMIC_ACQUIRE)) continue;
        /* The caller's thread looks at the clock, where there is a deadline; the others see what it found. */
        if (!(thread ? __atomic_load_n(&stop->why, __ATOMIC_RELAXED) : llmc_stopped(stop)))
            task(arguments, range[0], range[1], pool->scratch + (size_t)thread * pool->scratch_bytes);
        return 1;
    }
}

/*
 * Run free chunks until there are none, and return how many; `*job` is the number of the job in which the thread's own
 * stretch had no more. They are all of one job: it ends when they are said to be done, which is for the caller to do.
 */
static uint32_t run_chunks(llmc_pool *pool, int thread, uint32_t *job) {
    int second = own_stretch(pool, thread);
    uint32_t count = 0, other;
    while (run_chunk(pool, second, thread, job)) count++;
    while (run_chunk(pool, !second, thread, &other)) count++;
    return count;
}

static int changed(llmc_pool *pool, const uint64_t *ticket, uint32_t job) {
    return (uint32_t)(__atomic_load_n(ticket, __ATOMIC_SEQ_CST) >> 32) != job || LOAD(pool->end);
}

/* Wait, first awake and then asleep, for another job than `job` or for the end. */
static void wait_for_job(llmc_pool *pool, int thread, uint32_t job) {
    const uint64_t *ticket = &pool->stretches[own_stretch(pool, thread)].ticket;
    double until = llmc_now() + pool->spin;
    do {
        int i;
        for (i = 0; i < 64; i++) {
            if (changed(pool, ticket, job)) return;
            relax();
        }
    } while (llmc_now() < until);
    pthread_mutex_lock(&pool->lock);
    /* Either the publisher sees this count, or we see its ticket: both are sequentially consistent. */
    __atomic_add_fetch(&pool->sleepers, 1, __ATOMIC_SEQ_CST);
    while (!changed(pool, ticket, job)) pthread_cond_wait(&pool->wake, &pool->lock);
    __atomic_sub_fetch(&pool->sleepers, 1, __ATOMIC_SEQ_CST);
    pthread_mutex_unlock(&pool->lock);
}

static void *work(void *argument) {
    worker *self = (worker *)argument;
    llmc_pool *pool = self->pool;
    uint32_t job, count;
    if (pool->pin) llmc_pin_thread(self->index); /* a wish: running elsewhere is slower, not wrong */
    llmc_float_mode();
    while (!LOAD(pool->end)) {
        count = run_chunks(pool, self->index, &job);
        if (count)
            __atomic_add_fetch(&pool->done, count, __ATOMIC_RELEASE);
        else
            wait_for_job(pool, self->index, job);
    }
    return NULL;
}

/* The chunks left are in other threads' hands: wait awake, then let them have this core. */
static void wait_for_chunks(llmc_pool *pool) {
    const struct timespec nap = {0, 20000};
    int round;
    for (round = 0; LOAD(pool->done) != pool->due; round++) {
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

/* Let workers run anywhere but where the caller does (room.h). */
static void make_room(llmc_pool *pool) {
    int i, cpu = sched_getcpu();
    if (cpu < 0 || cpu >= CPU_SETSIZE || cpu == pool->left || pool->pin) return;
    pool->left = cpu;
    for (i = 1; i <= pool->started; i++) {
        worker *w = &pool->workers[i];
        keep_off(w->thread, pool->owner, pool->started, &w->may, cpu);
    }
}

/* Give the job to all threads. */
static void publish(llmc_pool *pool, llmc_task task, const void *arguments, int64_t items, cutting c,
                    llmc_stop *stop) {
    uint32_t last = (uint32_t)(LOAD(pool->stretches[0].ticket) >> 32);
    uint64_t closed = (uint64_t)last << 32 | CLOSED, open = (uint64_t)(last + 1) << 32;
    /* A worker may hold the last job's ticket still: were it to read the new job's fields beside it, the old
     * ticket could pass for a free chunk. Closing it first makes the exchange of such a worker fail. */
    STORE(pool->stretches[0].ticket, closed);
    STORE(pool->stretches[1].ticket, closed);
    STORE(pool->task, task);
    STORE(pool->arguments, arguments);
    STORE(pool->stop, stop);
    STORE(pool->items, items);
    STORE(pool->chunk, c.chunk);
    STORE(pool->first, c.first);
    STORE(pool->chunks, c.chunks);
    LLMC_POOL_WINDOW();
    /* The caller's own last: the others begin while it is still here. */
    __atomic_store_n(&pool->stretches[1].ticket, open, __ATOMIC_SEQ_CST);
    __atomic_store_n(&pool->stretches[0].ticket, open, __ATOMIC_SEQ_CST);
    if (__atomic_load_n(&pool->sleepers, __ATOMIC_SEQ_CST)) {
        make_room(pool);
        pthread_mutex_lock(&pool->lock);
        pthread_cond_broadcast(&pool->wake);
        pthread_mutex_unlock(&pool->lock);
    }
}

static void run(llmc_pool *pool, llmc_task task, const void *arguments, int64_t items, int64_t cost, llmc_stop *stop) {
    worth *w = &pool->workers_worth;
    uint32_t mine, seen;
    double begun, ready, ended;
    cutting c;
    if (items <= 0) return;
    if (cost < 1) cost = 1;
    if (pool->started == 0 || items == 1 || items < SMALL_JOB / cost) {
        run_alone(pool, task, arguments, items, cost, stop);
        return;
    }
    begun = llmc_now();
    if (worth_alone(w, begun)) {
        run_alone(pool, task, arguments, items, cost, stop);
        w->worked += llmc_now() - begun;
        return;
    }
    c = plan(items, cost, pool->threads);
    publish(pool, task, arguments, items, c, stop);
    mine = run_chunks(pool, 0, &seen);
    ended = ready = llmc_now();
    pool->due += c.chunks - mine;
    if (LOAD(pool->done) != pool->due) {
        wait_for_chunks(pool);
        ended = llmc_now();
    }
    worth_count(w, ended, ended - begun, ended - ready, mine, c.chunks);
}

/* Signals that are not a thread's own: those sent to the process are for the program's threads, whose masks say which. */
static void others_signals(sigset_t *set) {
    static const int own[] = {SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGTRAP, SIGSYS, SIGABRT, SIGPROF};
    size_t i;
    sigfillset(set);
    for (i = 0; i < sizeof own / sizeof *own; i++) sigdelset(set, own[i]);
}

static llmc_status start_workers(llmc_pool *pool, llmc_error *error) {
    sigset_t others, before;
    int i, failed = 0;
    others_signals(&others);
    pthread_sigmask(SIG_BLOCK, &others, &before); /* threads begin with the mask of who starts them */
    for (i = 1; i < pool->threads && !failed; i++) {
        worker *w = &pool->workers[i];
        w->pool = pool;
        w->index = i;
        failed = pthread_create(&w->thread, NULL, work, w) != 0;
        pool->started += !failed;
    }
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    if (failed)
        return llmc_fail(error, LLMC_ERROR_MEMORY, "ask for fewer threads", "cannot start thread %d of %d",
                         pool->started + 2, pool->threads);
    make_room(pool);
    return LLMC_OK;
}

static int threads(const llmc_pool *pool) {
    return pool->threads;
}

/* Whether this is a child of the process that has the workers, and so has none. */
static int forked(const llmc_pool *pool) {
    return pool->owner != getpid();
}

/* The workers are idle, or about to be: they read `scratch` only when they have taken a chunk. */
static llmc_status reserve(llmc_pool *pool, size_t scratch_bytes, llmc_error *error) {
    size_t bytes = (scratch_bytes / 64 + 1) * 64; /* one line more, so that no two threads share one */
    void *scratch = NULL;
    if (forked(pool))
        return llmc_fail(error, LLMC_ERROR_FORK, "open others after fork()",
                         "the threads were opened by the parent process and are not in this one");
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
    if (forked(pool) || pthread_mutex_trylock(&pool->turn) == 0) return 1; /* who had the turn at fork() never ends it here */
    clock_gettime(CLOCK_REALTIME, &until); /* the clock that the wait goes by */
    until.tv_nsec += PATIENCE_NS;
    until.tv_sec += until.tv_nsec / 1000000000;
    until.tv_nsec %= 1000000000;
    return pthread_mutex_timedlock(&pool->turn, &until) == 0;
}

static void end_turn(llmc_pool *pool) {
    if (!forked(pool)) pthread_mutex_unlock(&pool->turn);
}

const llmc_pool_functions llmc_pool_can = {LLMC_VERSION, run, threads, reserve, take_turn, end_turn};

llmc_status llmc_pool_open(llmc_pool **out, int threads, int spin_us, int pin, size_t scratch_bytes,
                           llmc_error *error) {
    void *memory = NULL;
    llmc_pool *pool;
    llmc_status status;
    if (posix_memalign(&memory, 64, sizeof *pool) != 0) return llmc_fail_memory(error, sizeof *pool);
    pool = (llmc_pool *)memset(memory, 0, sizeof *pool);
    pool->head.functions = &llmc_pool_can;
    pool->threads = threads;
    pool->pin = pin;
    pool->left = -1;
    pool->owner = getpid();
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
    if (forked(pool)) { /* where they wait is not to be destroyed either: that would wait for them */
        llmc_pool_abandon(pool);
        return;
    }
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
