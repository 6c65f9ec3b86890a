/*
 * driver.c - use the C interface as a C program would, for the tests under sanitizers and valgrind.
 *
 *   driver FOLDER            everything once, at 1 to 4 threads
 *   driver FOLDER failures   the n-th allocation fails, for n = 1, 2, ... (linked with --wrap)
 */
#define _GNU_SOURCE

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "check.h"
#include "llmc.h"
#ifdef FAILURES
#include "failures.h"
#endif

#define BATCH 5
#define SEQ 70

static llmc_error error;

typedef struct call {
    llmc_model *model;
    int64_t ids[BATCH * SEQ];
    float hidden[BATCH * SEQ * 3], sums[BATCH * 3], ramp[2 * SEQ + 1];
    llmc_status status;
} call;

static llmc_status run(call *c, int64_t batch, int64_t seq, llmc_error *e) {
    llmc_tensor in[2], out[3];
    int i;
    memset(in, 0, sizeof in);
    memset(out, 0, sizeof out);
    in[0].data = c->ids;
    in[0].dtype = LLMC_I64;
    in[0].rank = 2;
    in[0].shape[0] = batch;
    in[0].shape[1] = seq;
    c->status = llmc_output_shapes(c->model, in, out, e);
    if (c->status != LLMC_OK) return c->status;
    out[0].data = c->hidden;
    out[1].data = c->sums;
    out[2].data = c->ramp;
    c->status = llmc_run(c->model, in, out, e);
    for (i = 0; i < 3 && c->status == LLMC_OK; i++)
        if (out[i].dtype != LLMC_F32) c->status = LLMC_ERROR_DTYPE;
    return c->status;
}

static void fill(call *c, llmc_model *model) {
    int i;
    memset(c, 0, sizeof *c);
    c->model = model;
    for (i = 0; i < BATCH * SEQ; i++) c->ids[i] = i % 10;
}

static void *run_often(void *argument) {
    call *c = (call *)argument;
    llmc_error e;
    int i;
    for (i = 0; i < 50; i++)
        if (run(c, 1 + i % BATCH, 1 + i % SEQ, &e) != LLMC_OK) break;
    if (c->status == LLMC_OK) run(c, BATCH, SEQ, &e);
    return NULL;
}

/* Weights are k - 7 at index k of the table [10, 3]. */
static void check_results(const call *c) {
    int i;
    for (i = 0; i < BATCH * SEQ * 3; i++) CHECK(c->hidden[i] == (float)(3 * (i / 3 % 10) + i % 3 - 7));
    CHECK(c->ramp[2 * SEQ] == 2 * SEQ);
}

static void run_together(llmc_model *model) {
    static call calls[3];
    pthread_t threads[3];
    int i;
    for (i = 0; i < 3; i++) {
        fill(&calls[i], model);
        CHECK(pthread_create(&threads[i], NULL, run_often, &calls[i]) == 0);
    }
    for (i = 0; i < 3; i++) {
        pthread_join(threads[i], NULL);
        CHECK(calls[i].status == LLMC_OK);
        check_results(&calls[i]);
    }
}

static void check_errors(llmc_model *model, const char *folder) {
    static call c;
    llmc_options options;
    llmc_model *other;
    fill(&c, model);
    c.ids[3] = -5;
    CHECK(run(&c, 1, 5, &error) == LLMC_ERROR_RANGE);
    CHECK(strcmp(error.message, "input_ids[0,3] is -5, must be within 0..9") == 0);
    CHECK(run(&c, 1, 5, NULL) == LLMC_ERROR_RANGE);
    CHECK(run(&c, 65, 1, &error) == LLMC_ERROR_SHAPE);
    CHECK(run(&c, -1, 1, &error) == LLMC_ERROR_SHAPE);
    CHECK(llmc_run(model, NULL, NULL, &error) == LLMC_ERROR_ARGUMENT);
    CHECK(llmc_open(NULL, NULL, &other, &error) == LLMC_ERROR_ARGUMENT);
    CHECK(llmc_open("/nonexistent", NULL, &other, &error) == LLMC_ERROR_FILE && other == NULL);
    memset(&options, 0, sizeof options);
    options.threads = -1;
    CHECK(llmc_open(folder, &options, &other, &error) == LLMC_ERROR_ARGUMENT);
    options.threads = 0;
    options.variant = "none";
    CHECK(llmc_open(folder, &options, &other, &error) == LLMC_ERROR_ARGUMENT);
}

/* The caller's floating-point mode is as it was after a run, which has its own. */
static void check_float_mode(llmc_model *model) {
#if defined(__x86_64__)
    const unsigned flush = 0x8040; /* flush to zero, denormals are zeros */
    static call c;
    unsigned mode = __builtin_ia32_stmxcsr();
    fill(&c, model);
    __builtin_ia32_ldmxcsr(mode | flush);
    if ((__builtin_ia32_stmxcsr() & flush) != flush) return; /* valgrind has no such mode */
    CHECK(run(&c, BATCH, SEQ, &error) == LLMC_OK);
    check_results(&c); /* tiny gives other numbers where denormals are flushed */
    CHECK((__builtin_ia32_stmxcsr() & flush) == flush);
    __builtin_ia32_ldmxcsr(mode);
#else
    (void)model;
#endif
}

static llmc_status measure(llmc_model *model) {
    llmc_benchmark_options options;
    llmc_benchmark_report report;
    llmc_step_report steps[3];
    llmc_summary a, b;
    llmc_ratio ratio;
    llmc_status status;
    memset(&options, 0, sizeof options);
    options.seconds = 0.01;
    options.max_runs = 20;
    status = llmc_benchmark(model, NULL, &options, &report, steps, &error);
    if (status != LLMC_OK) return status;
    CHECK(report.latency.n >= 3 && report.sizes[0] == 1 && report.sizes[1] == 128);
    return llmc_compare(llmc_get_api(), model, NULL, llmc_get_api(), model, report.sizes, &options, &a, &b, &ratio,
                        &error);
}

static void use(const char *folder, int threads) {
    llmc_options options;
    llmc_model *model = NULL;
    memset(&options, 0, sizeof options);
    options.threads = threads;
    options.pin = threads == 2;
    options.spin_us = threads == 3 ? -1 : 0;
    CHECK(llmc_open(folder, &options, &model, &error) == LLMC_OK);
    CHECK(llmc_describe(model)->threads == threads);
    run_together(model);
    check_errors(model, folder);
    check_float_mode(model);
    CHECK(measure(model) == LLMC_OK);
    llmc_close(model);
    llmc_close(NULL);
}

#ifdef FAILURES
/* After a failure the same model runs. */
static void fail_each(const char *folder) {
    static call c;
    llmc_options options;
    long n;
    int failed = 1;
    memset(&options, 0, sizeof options);
    options.threads = 3;
    for (n = 1; failed; n++) {
        llmc_model *model = NULL;
        llmc_status status;
        countdown = n;
        status = llmc_open(folder, &options, &model, &error);
        fill(&c, model);
        if (status == LLMC_OK) status = run(&c, BATCH, SEQ, &error);
        if (status == LLMC_OK) status = measure(model);
        failed = countdown == 0;
        CHECK(status == LLMC_OK || (failed && status == LLMC_ERROR_MEMORY && strlen(error.message) > 10));
        countdown = 0;
        if (model) CHECK(run(&c, BATCH, SEQ, &error) == LLMC_OK);
        if (model) check_results(&c);
        llmc_close(model);
    }
    printf("%ld allocations failed\n", n - 2);
}
#endif

int main(int argc, char **argv) {
    int threads;
#ifdef FAILURES
    if (argc > 2) return fail_each(argv[1]), 0;
#endif
    if (argc < 2) return 2;
    for (threads = 1; threads <= 4; threads++) use(argv[1], threads);
    puts("done");
    return 0;
}
