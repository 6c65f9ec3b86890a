/*
 * host.c - the CPU as a device: its memory is the program's own, and a pool's threads run the kernels.
 */
#include <stdlib.h>
#include <string.h>

#include "model.h"

static llmc_status open_model(llmc_model *model, llmc_error *error) {
    (void)model, (void)error;
    return LLMC_OK;
}

static void close_model(llmc_model *model, int forked) {
    (void)model, (void)forked;
}

static llmc_status open_session(llmc_session *session, llmc_error *error) {
    (void)session, (void)error;
    return LLMC_OK;
}

static void close_session(llmc_session *session, int forked) {
    (void)session, (void)forked;
}

/* A C library that can move pages without copying them does so in realloc(). */
static llmc_status grow(llmc_session *session, llmc_region *region, size_t bytes, size_t keep, llmc_error *error) {
    size_t offset = region->at ? (size_t)(region->at - (unsigned char *)region->block) : 0;
    unsigned char *block, *at;
    (void)session;
    if (!keep) { /* first, so that the peak is the larger of the two and not their sum */
        free(region->block);
        region->at = NULL;
        region->block = NULL;
        region->bytes = 0;
    }
    block = bytes < SIZE_MAX - 64 ? (unsigned char *)realloc(region->block, bytes + 64) : NULL;
    if (!block) return llmc_fail_memory(error, bytes);
    at = block + (64 - (uintptr_t)block % 64) % 64;
    if (keep && at != block + offset) memmove(at, block + offset, keep);
    region->block = block;
    region->at = at;
    region->bytes = bytes;
    return LLMC_OK;
}

static void release(llmc_session *session, llmc_region *region, int forked) {
    (void)session, (void)forked;
    free(region->block);
}

static llmc_status copy(llmc_session *session, void *to, const void *from, size_t bytes, llmc_error *error) {
    (void)session, (void)error;
    if (from)
        memcpy(to, from, bytes);
    else
        memset(to, 0, bytes);
    return LLMC_OK;
}

static size_t run_bytes(const llmc_session *session, const llmc_function *function, const int64_t *sizes,
                        size_t parts) {
    return llmc_held_for(llmc_arena_of_samples(session, function, sizes) + parts);
}

static llmc_status run(llmc_session *session, const llmc_function *function, const llmc_tensor *outputs,
                       const int64_t *sizes, llmc_error *error) {
    uint64_t mode;
    int i;
    size_t bytes = llmc_arena_of_samples(session, function, sizes) + session->part_bytes;
    llmc_status status = llmc_reserve(session, &llmc_host, &session->arena, bytes, 0, error);
    if (status != LLMC_OK) return status;
    for (i = 0; i < function->n_outputs; i++) session->outputs[i] = outputs[i].data;
    mode = llmc_float_mode(); /* the caller's may differ from the workers': the same bits on all threads */
    llmc_run_samples(session, function, sizes);
    llmc_set_float_mode(mode);
    return LLMC_OK;
}

void llmc_run_step(llmc_frame *frame, int step, llmc_task task, const void *arguments, int64_t items, int64_t cost) {
    llmc_session *session = (llmc_session *)frame->runtime;
    double begin;
    if (llmc_is_over(session)) return;
    if (!session->step_seconds) {
        session->pool_can->run(session->pool, task, arguments, items, cost, &session->stop);
        return;
    }
    begin = llmc_now();
    session->pool_can->run(session->pool, task, arguments, items, cost, &session->stop);
    session->step_seconds[step] += llmc_now() - begin;
}

/* A step that each part has for itself. */
typedef struct apart {
    const llmc_frame *frame;
    llmc_task task;
    size_t bytes;
} apart;

/* Items begin..end of those of all parts, one after the other. */
static void run_apart(const void *argument, int64_t begin, int64_t end, void *scratch) {
    const apart *a = (const apart *)argument;
    const unsigned char *call = (const unsigned char *)a->frame->calls;
    const llmc_part *part = a->frame->parts;
    for (; begin < end; begin -= part->items, end -= part->items, part++, call += a->bytes) {
        int64_t last = end < part->items ? end : part->items;
        if (begin >= part->items) continue;
        a->task(call, begin > 0 ? begin : 0, last, scratch);
        if (end <= part->items) return;
    }
}

void llmc_run_parts(llmc_frame *frame, int step, llmc_task task, size_t bytes) {
    apart a = {frame, task, bytes};
    const llmc_part *parts = frame->parts;
    int64_t items = 0;
    double work = 0;
    int i;
    if (frame->n_parts == 1) {
        llmc_run_step(frame, step, task, frame->calls, parts->items, parts->cost);
        return;
    }
    for (i = 0; i < frame->n_parts; i++) {
        items += parts[i].items;
        work += (double)parts[i].items * (double)parts[i].cost;
    }
    if (items > 0) llmc_run_step(frame, step, run_apart, &a, items, (int64_t)(work / (double)items) + 1);
}

static llmc_status move(llmc_session *session, void *to, const void *from, size_t bytes, llmc_error *error) {
    return bytes ? copy(session, to, from, bytes, error) : LLMC_OK;
}

const llmc_device llmc_host = {0,    open_model, close_model, open_session, close_session, grow,           release,
                               copy, move,       move,        run_bytes,    run,           llmc_peak_flops, llmc_peak_stream,
                               NULL};
