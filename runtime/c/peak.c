/*
 * peak.c - the CPU's own limits, measured with the session's threads: multiply-adds and memory stream.
 */
#include <stdlib.h>

#include "model.h"

#define TRIALS 7            /* the best one counts: nothing makes a machine faster than it is */
#define ITEMS_PER_THREAD 16 /* a thread that starts late leaves its share to the others */
#ifndef STREAM_FLOATS
#define STREAM_FLOATS (4 << 20) /* in each of three arrays of 16 MB: beyond the caches of a core */
#endif
#define STREAM_ITEMS 256

typedef struct fma_job {
    double (*loop)(int64_t rounds);
    int64_t rounds;
    double flops; /* of one item */
} fma_job;

static void run_fmas(const void *arguments, int64_t begin, int64_t end, void *scratch) {
    const fma_job *job = (const fma_job *)arguments;
    (void)scratch;
    for (; begin < end; begin++) job->loop(job->rounds);
}

double llmc_peak_flops(llmc_session *session) {
    llmc_stop never = {LLMC_OK, 0};
    fma_job job = {NULL, 1000, 0};
    int64_t items = (int64_t)session->pool_can->threads(session->pool) * ITEMS_PER_THREAD;
    double best = 0, seconds;
    int trial;
    job.loop = session->model->variant->fma_loop;
    if (!job.loop) return 0;
    for (;;) { /* rounds for about a third of a millisecond */
        double begin = llmc_now();
        job.flops = job.loop(job.rounds);
        seconds = llmc_now() - begin;
        if (seconds > 3e-4 || job.rounds > INT64_MAX / 4) break;
        job.rounds *= 2;
    }
    for (trial = 0; trial < TRIALS; trial++) {
        double begin = llmc_now(), rate;
        session->pool_can->run(session->pool, run_fmas, &job, items, INT32_MAX, &never);
        rate = job.flops * (double)items / (llmc_now() - begin);
        if (rate > best) best = rate;
    }
    return best;
}

typedef struct triad_job {
    float *a, *b, *c;
} triad_job;

/* a = b + 3 c, the triad of J. McCalpin's STREAM. */
static void run_triad(const void *arguments, int64_t begin, int64_t end, void *scratch) {
    const triad_job *job = (const triad_job *)arguments;
    float *a = job->a;
    const float *b = job->b, *c = job->c;
    int64_t i, length = STREAM_FLOATS / STREAM_ITEMS;
    (void)scratch;
    for (i = begin * length; i < end * length; i++) a[i] = b[i] + 3.0f * c[i];
}

double llmc_peak_stream(llmc_session *session) {
    llmc_stop never = {LLMC_OK, 0};
    triad_job job;
    double best = 0;
    int trial;
    job.a = (float *)calloc(3 * (size_t)STREAM_FLOATS, sizeof(float));
    if (!job.a) return 0;
    job.b = job.a + STREAM_FLOATS;
    job.c = job.b + STREAM_FLOATS;
    for (trial = 0; trial < STREAM_FLOATS; trial++) job.b[trial] = job.c[trial] = 1; /* give them real pages */
    for (trial = 0; trial < TRIALS; trial++) {
        double begin = llmc_now(), rate;
        session->pool_can->run(session->pool, run_triad, &job, STREAM_ITEMS, INT32_MAX, &never);
        rate = 3.0 * sizeof(float) * STREAM_FLOATS / (llmc_now() - begin);
        if (rate > best) best = rate;
    }
    free(job.a);
    return best;
}
