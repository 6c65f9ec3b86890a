/*
 * sessions.c - sessions of tally.c as a C program uses them, for the tests under sanitizers and valgrind.
 *
 *   sessions FOLDER            everything once: four threads with a session each, on every kind of threads
 *   sessions FOLDER failures   the n-th allocation fails, for n = 1, 2, ... (linked with --wrap)
 */
#define _GNU_SOURCE

#include <pthread.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "check.h"
#include "llmc.h"
#ifdef FAILURES
#include "failures.h"
#endif

#define MOST 40  /* positions */
#define ROWS 4

static __thread llmc_error error;

typedef struct player { /* one sequence, and what it should hold */
    llmc_session *session;
    int64_t batch, past, seen[ROWS][MOST];
    float total[ROWS][3];
    unsigned seed;
    int status, running; /* running: a long run is about to begin, or has */
} player;

static int next(player *p, int below) {
    p->seed = p->seed * 1664525u + 1013904223u;
    return (int)(p->seed >> 16) % below;
}

/* Call step() with `seq` new positions; `rounds` milliseconds long. */
static llmc_status step(player *p, int64_t seq, int64_t rounds, const llmc_run_options *options) {
    int64_t ids[ROWS * 8], history[ROWS * MOST], b, s;
    float sums[ROWS * 3];
    llmc_tensor in[3], out[2];
    llmc_status status;
    memset(in, 0, sizeof in);
    memset(out, 0, sizeof out);
    for (b = 0; b < p->batch * seq; b++) ids[b] = next(p, 10);
    in[0].data = ids;
    in[0].dtype = in[2].dtype = LLMC_I64;
    in[0].rank = 2;
    in[0].shape[0] = p->batch;
    in[0].shape[1] = seq;
    if (rounds) in[2].data = &rounds;
    status = llmc_session_output_shapes(p->session, 0, in, out, &error);
    if (status != LLMC_OK) return status;
    CHECK(out[1].shape[0] == p->batch && out[1].shape[1] == p->past + seq);
    out[0].data = sums;
    out[1].data = history;
    __atomic_store_n(&p->running, rounds > 0, __ATOMIC_SEQ_CST); /* what keeps the session busy from now on is the run */
    do status = llmc_session_run(p->session, 0, in, out, options, &error);
    while (status == LLMC_ERROR_BUSY && rounds); /* the other thread looked at the session just then */
    if (status != LLMC_OK || (options && options->discard)) return status;
    for (b = 0; b < p->batch; b++)
        for (s = 0; s < seq; s++) {
            float id = (float)ids[b * seq + s];
            p->seen[b][p->past + s] = ids[b * seq + s];
            p->total[b][0] += id;
            p->total[b][1] += 1;
            p->total[b][2] += id * id;
        }
    p->past += seq;
    for (b = 0; b < p->batch; b++) {
        CHECK(memcmp(&sums[3 * b], p->total[b], sizeof p->total[b]) == 0);
        CHECK(memcmp(&history[b * p->past], p->seen[b], (size_t)p->past * sizeof(int64_t)) == 0);
    }
    return LLMC_OK;
}

/* Call peek() and compare all that the session holds. */
static llmc_status peek(player *p) {
    float scaled[ROWS * 3], trail[ROWS * MOST];
    llmc_tensor in[1], out[2];
    llmc_status status;
    int64_t b, s;
    memset(in, 0, sizeof in);
    memset(out, 0, sizeof out);
    status = llmc_session_output_shapes(p->session, 1, in, out, &error);
    if (status != LLMC_OK) return status;
    out[0].data = scaled;
    out[1].data = trail;
    status = llmc_session_run(p->session, 1, in, out, NULL, &error);
    for (b = 0; b < p->batch && status == LLMC_OK; b++) {
        CHECK(memcmp(&scaled[3 * b], p->total[b], sizeof p->total[b]) == 0);
        for (s = 0; s < p->past; s++) CHECK(trail[b * p->past + s] == (float)p->seen[b][s]);
    }
    return status;
}

static llmc_status forget(player *p, int64_t batch) {
    p->batch = batch;
    p->past = 0;
    memset(p->total, 0, sizeof p->total);
    return llmc_session_reset(p->session, &error);
}

static void *play(void *argument) {
    player *p = (player *)argument;
    int turn;
    p->status = 0;
    for (turn = 0; turn < 12; turn++) {
        if (forget(p, 1 + next(p, ROWS)) != LLMC_OK) return NULL;
        while (p->past < MOST - 8)
            if (step(p, 1 + next(p, 8), 0, NULL) != LLMC_OK) return NULL;
        if (peek(p) != LLMC_OK) return NULL;
    }
    p->status = 1;
    return NULL;
}

/* Four threads, a session each, of one model. */
static void play_together(llmc_model *model, const llmc_session_options *options) {
    static player players[4];
    pthread_t threads[4];
    int i;
    for (i = 0; i < 4; i++) {
        players[i].seed = (unsigned)i;
        CHECK(llmc_session_open(model, options, &players[i].session, &error) == LLMC_OK);
        CHECK(pthread_create(&threads[i], NULL, play, &players[i]) == 0);
    }
    for (i = 0; i < 4; i++) {
        pthread_join(threads[i], NULL);
        CHECK(players[i].status == 1);
        llmc_session_close(players[i].session);
    }
}

static void *run_long(void *argument) {
    player *p = (player *)argument;
    p->status = (int)step(p, 1, 1000000, NULL);
    return NULL;
}

/* A second thread is told, the run is cancelled, and the session is as it was. */
static void check_busy_and_cancel(llmc_model *model, const llmc_session_options *options) {
    static player p, other;
    llmc_session_report report;
    pthread_t thread;
    llmc_status status;
    CHECK(llmc_session_open(model, options, &p.session, &error) == LLMC_OK);
    CHECK(forget(&p, 2) == LLMC_OK && step(&p, 3, 0, NULL) == LLMC_OK);
    other = p;
    CHECK(pthread_create(&thread, NULL, run_long, &p) == 0);
    while (!__atomic_load_n(&p.running, __ATOMIC_SEQ_CST)) sched_yield();
    do {
        status = llmc_session_info(other.session, &report, &error);
        sched_yield();
    } while (status == LLMC_OK);
    CHECK(status == LLMC_ERROR_BUSY && step(&other, 1, 0, NULL) == LLMC_ERROR_BUSY);
    CHECK(llmc_session_reset(other.session, &error) == LLMC_ERROR_BUSY);
    llmc_session_cancel(other.session);
    pthread_join(thread, NULL);
    CHECK(p.status == LLMC_ERROR_CANCELLED);
    CHECK(llmc_session_info(p.session, &report, &error) == LLMC_OK && report.sizes[2] == 3 && report.sizes[0] == 2);
    CHECK(peek(&p) == LLMC_OK && step(&p, 1, 0, NULL) == LLMC_OK && peek(&p) == LLMC_OK);
    llmc_session_close(p.session);
}

static void check_deadline(llmc_model *model, const llmc_session_options *options) {
    llmc_run_options soon = {0.01, 0}, discard = {0, 1};
    static player p;
    CHECK(llmc_session_open(model, options, &p.session, &error) == LLMC_OK);
    CHECK(forget(&p, 3) == LLMC_OK && step(&p, 5, 0, NULL) == LLMC_OK);
    CHECK(step(&p, 2, 1000000, &soon) == LLMC_ERROR_DEADLINE && strstr(error.message, "timeout of 0.01 s"));
    CHECK(peek(&p) == LLMC_OK);
    CHECK(step(&p, 2, 0, &discard) == LLMC_OK && peek(&p) == LLMC_OK);
    soon.timeout = -1;
    CHECK(step(&p, 2, 0, &soon) == LLMC_ERROR_ARGUMENT);
    CHECK(step(&p, 2, 0, NULL) == LLMC_OK && peek(&p) == LLMC_OK);
    llmc_session_close(p.session);
}

/* A refused growth leaves the session usable. */
static void check_bounds(llmc_model *model) {
    const int64_t sizes[3] = {4, 8, 0};
    llmc_session_options options;
    llmc_memory needed;
    static player p;
    int i;
    memset(&options, 0, sizeof options);
    options.threads = 1;
    CHECK(llmc_memory_needed(model, 0, sizes, &needed, &error) == LLMC_OK && needed.states > 0);
    options.max_memory = needed.arena + needed.states;
    CHECK(llmc_session_open(model, &options, &p.session, &error) == LLMC_OK);
    for (i = 0; i < 3; i++) {
        CHECK(forget(&p, 4) == LLMC_OK && step(&p, 8, 0, NULL) == LLMC_OK);
        CHECK(step(&p, 8, 0, NULL) == LLMC_ERROR_MEMORY && strstr(error.message, "max_memory is"));
        CHECK(peek(&p) == LLMC_OK);
    }
    CHECK(forget(&p, 1) == LLMC_OK && step(&p, 8, 0, NULL) == LLMC_OK && step(&p, 8, 0, NULL) == LLMC_OK);
    llmc_session_close(p.session);
    CHECK(llmc_session_open(model, NULL, &p.session, &error) == LLMC_OK && forget(&p, 1) == LLMC_OK);
    for (i = 0; i < MOST / 8; i++) CHECK(step(&p, 8, 0, NULL) == LLMC_OK);
    CHECK(step(&p, 1, 0, NULL) == LLMC_ERROR_STATE && peek(&p) == LLMC_OK);
    llmc_session_close(p.session);
}

static void check_resize(llmc_model *model) {
    static player p;
    int64_t sizes[3] = {-1, -1, 0}, b, s;
    CHECK(llmc_session_open(model, NULL, &p.session, &error) == LLMC_OK);
    sizes[2] = 3;
    CHECK(llmc_session_resize(p.session, sizes, &error) == LLMC_ERROR_STATE);
    CHECK(forget(&p, 3) == LLMC_OK && step(&p, 8, 0, NULL) == LLMC_OK);
    CHECK(llmc_session_resize(p.session, sizes, &error) == LLMC_OK);
    p.past = 3;
    CHECK(peek(&p) == LLMC_OK && step(&p, 2, 0, NULL) == LLMC_OK);
    sizes[2] = 20;
    CHECK(llmc_session_resize(p.session, sizes, &error) == LLMC_OK);
    for (b = 0; b < 3; b++)
        for (s = 5; s < 20; s++) p.seen[b][s] = 0;
    p.past = 20;
    CHECK(peek(&p) == LLMC_OK && step(&p, 2, 0, NULL) == LLMC_OK && peek(&p) == LLMC_OK);
    sizes[0] = 2;
    CHECK(llmc_session_resize(p.session, sizes, &error) == LLMC_ERROR_STATE && peek(&p) == LLMC_OK);
    llmc_session_close(p.session);
}

static void check_arguments(llmc_model *model) {
    llmc_session *session;
    llmc_session_options options;
    llmc_tensor tensor;
    memset(&tensor, 0, sizeof tensor);
    memset(&options, 0, sizeof options);
    CHECK(llmc_find_function(model, "peek", &error) == 1);
    CHECK(llmc_find_function(model, "peak", &error) == -1 && strstr(error.hint, "did you mean peek? it has step, peek"));
    CHECK(llmc_find_function(model, "", &error) == -1 && llmc_find_function(NULL, "x", NULL) == -1);
    options.threads = -1;
    CHECK(llmc_session_open(model, &options, &session, &error) == LLMC_ERROR_ARGUMENT && session == NULL);
    CHECK(llmc_session_open(NULL, NULL, &session, &error) == LLMC_ERROR_ARGUMENT);
    CHECK(llmc_run(model, &tensor, &tensor, &error) == LLMC_ERROR_STATE && strstr(error.message, "needs a session"));
    CHECK(llmc_session_open(model, NULL, &session, &error) == LLMC_OK);
    CHECK(llmc_session_run(session, 3, &tensor, &tensor, NULL, &error) == LLMC_ERROR_ARGUMENT);
    CHECK(llmc_session_run(session, -1, &tensor, &tensor, NULL, &error) == LLMC_ERROR_ARGUMENT);
    CHECK(llmc_session_run(session, 0, NULL, NULL, NULL, &error) == LLMC_ERROR_ARGUMENT);
    CHECK(llmc_session_run(session, 1, &tensor, &tensor, NULL, &error) == LLMC_ERROR_STATE);
    CHECK(strstr(error.message, "function peek reads state total, which function step sets"));
    llmc_session_cancel(session);
    llmc_session_cancel(NULL);
    llmc_session_close(session);
    llmc_session_close(NULL);
}

static llmc_status measure(llmc_model *model) {
    const int64_t sizes[3] = {2, 3, 30};
    llmc_benchmark_options options;
    llmc_benchmark_report report;
    llmc_step_report steps[6];
    llmc_summary a, b;
    llmc_ratio ratio;
    llmc_status status;
    memset(&options, 0, sizeof options);
    options.seconds = 0.01;
    options.max_runs = 20;
    status = llmc_benchmark(model, sizes, &options, &report, steps, &error);
    if (status != LLMC_OK) return status;
    CHECK(report.latency.n >= 3 && report.sizes[2] == 30 && report.flops == 2 * 6 && steps[5].seconds == 0);
    options.function = 1;
    return llmc_compare(llmc_get_api(), model, sizes, llmc_get_api(), model, sizes, &options, &a, &b, &ratio, &error);
}

/* A child of fork() is told, and may close what it has inherited. */
static void check_fork(llmc_model *model, llmc_session *session) {
    int status;
    pid_t child = fork();
    if (child == 0) {
        llmc_session *other;
        int good = llmc_session_reset(session, &error) == LLMC_ERROR_FORK &&
                   llmc_session_open(model, NULL, &other, &error) == LLMC_ERROR_FORK;
        llmc_session_close(session);
        llmc_close(model);
        _exit(good ? 0 : 1);
    }
    CHECK(waitpid(child, &status, 0) == child && WIFEXITED(status) && WEXITSTATUS(status) == 0);
}

/* Threads of its parent are not in a child: it is told, and closing them does not wait for them. */
static void check_forked_threads(const char *folder, llmc_threads *threads) {
    const struct timespec nap = {0, 20000000};
    int status;
    pid_t child;
    nanosleep(&nap, NULL); /* they fall asleep */
    child = fork();
    if (child == 0) {
        llmc_options options;
        llmc_model *model;
        int good;
        memset(&options, 0, sizeof options);
        options.shared = threads;
        alarm(60); /* where it waits */
        good = llmc_open(folder, &options, &model, &error) == LLMC_ERROR_FORK;
        llmc_threads_close(threads);
        _exit(good ? 0 : 1);
    }
    CHECK(waitpid(child, &status, 0) == child && WIFEXITED(status) && WEXITSTATUS(status) == 0);
}

static void use(const char *folder, const llmc_session_options *options) {
    llmc_options model_options;
    llmc_model *model;
    static player p;
    memset(&model_options, 0, sizeof model_options);
    model_options.threads = 2;
    CHECK(llmc_open(folder, &model_options, &model, &error) == LLMC_OK);
    play_together(model, options);
    check_busy_and_cancel(model, options);
    check_deadline(model, options);
    check_bounds(model);
    check_resize(model);
    check_arguments(model);
    CHECK(measure(model) == LLMC_OK);
    CHECK(llmc_session_open(model, options, &p.session, &error) == LLMC_OK);
    if (!options || options->threads == 1) check_fork(model, p.session);
    llmc_close(model); /* before its session */
    CHECK(forget(&p, 2) == LLMC_OK && step(&p, 4, 0, NULL) == LLMC_OK && peek(&p) == LLMC_OK);
    llmc_session_close(p.session);
}

#ifdef FAILURES
/* After a failure the same session goes on, from where it was. */
static void fail_each(const char *folder) {
    llmc_session_options options;
    llmc_options one;
    long n;
    int failed = 1;
    memset(&options, 0, sizeof options);
    memset(&one, 0, sizeof one);
    options.threads = 2;
    one.threads = 1;
    for (n = 1; failed; n++) {
        static player p;
        llmc_model *model = NULL;
        llmc_status status;
        int i;
        memset(&p, 0, sizeof p);
        countdown = n;
        status = llmc_open(folder, &one, &model, &error);
        if (status == LLMC_OK) status = llmc_session_open(model, &options, &p.session, &error);
        if (status == LLMC_OK) status = forget(&p, 3);
        for (i = 0; i < 6 && status == LLMC_OK; i++) status = step(&p, 5, 0, NULL);
        if (status == LLMC_OK) status = peek(&p);
        failed = countdown == 0;
        CHECK(status == LLMC_OK || (failed && status == LLMC_ERROR_MEMORY && strlen(error.message) > 10));
        countdown = 0;
        if (p.session) CHECK(step(&p, 3, 0, NULL) == LLMC_OK && peek(&p) == LLMC_OK);
        llmc_session_close(p.session);
        llmc_close(model);
    }
    printf("%ld allocations failed\n", n - 2);
}
#endif

int main(int argc, char **argv) {
    llmc_session_options options;
    if (argc < 2) return 2;
#ifdef FAILURES
    if (argc > 2) return fail_each(argv[1]), 0;
#endif
    memset(&options, 0, sizeof options);
    use(argv[1], NULL);
    options.threads = 1;
    use(argv[1], &options);
    options.threads = 3;
    use(argv[1], &options);
    options.threads = 0;
    CHECK(llmc_threads_open(NULL, &options.shared, &error) == LLMC_OK);
    use(argv[1], &options);
    check_forked_threads(argv[1], options.shared);
    llmc_threads_close(options.shared);
    puts("done");
    return 0;
}
