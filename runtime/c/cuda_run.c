/*
 * cuda_run.c - sessions on a GPU: memory, a stream of launches and copies, and runs.
 */
#include <stdlib.h>
#include <string.h>

#include "cuda.h"

#define MOST_ARGUMENTS 48 /* of a kernel */

static size_t most_ends(const llmc_program *program) {
    size_t most = 1;
    int i;
    for (i = 0; i < program->n_functions; i++) {
        size_t ends = (size_t)program->functions[i].n_inputs + (size_t)program->functions[i].n_outputs;
        if (ends > most) most = ends;
    }
    return most;
}

static llmc_status open_session(llmc_session *session, llmc_error *error) {
    gpu *s = session->model->on_device;
    size_t ends = most_ends(session->model->program);
    lane *l = (lane *)calloc(1, sizeof *l);
    context none;
    int result;
    if (!l) return llmc_fail_memory(error, sizeof *l);
    session->on_device = l;
    l->at = (device_pointer *)calloc(ends, sizeof *l->at);
    if (!l->at) return llmc_fail_memory(error, ends * sizeof *l->at);
    result = s->cuda.push(s->context);
    if (result != 0) return llmc_cuda_fail(s, result, "use the GPU", error);
    result = s->cuda.open_stream(&l->stream, 0);
    (void)s->cuda.pop(&none);
    return result == 0 ? LLMC_OK : llmc_cuda_fail(s, result, "begin a session", error);
}

static void close_session(llmc_session *session, int forked) {
    gpu *s = session->model->on_device;
    lane *l = session->on_device;
    context none;
    if (!l) return;
    llmc_release(session, &llmc_cuda, &l->ends, forked);
    if (l->stream && !forked && s->cuda.push(s->context) == 0) {
        (void)s->cuda.close_stream(l->stream);
        (void)s->cuda.pop(&none);
    }
    free(l->at);
    free(l);
}

static device_pointer address(const void *memory) {
    return (device_pointer)(uintptr_t)memory;
}

static int regrow(gpu *s, lane *l, llmc_region *region, size_t bytes, size_t keep) {
    device_pointer more = 0, old = address(region->at);
    int result = 0;
    if (!keep && old) { /* first, so that the peak is the larger of the two and not their sum */
        result = s->cuda.release_memory(old);
        region->at = NULL;
        region->block = NULL;
        region->bytes = 0;
    }
    if (result == 0) result = s->cuda.allocate(&more, bytes);
    if (result == 0 && keep) result = s->cuda.copy(more, old, keep, l->stream);
    if (result == 0 && keep) result = s->cuda.wait(l->stream);
    if (result != 0) {
        if (more) (void)s->cuda.release_memory(more);
        return result;
    }
    if (keep) (void)s->cuda.release_memory(old);
    region->at = (unsigned char *)(uintptr_t)more;
    region->bytes = bytes;
    return 0;
}

static llmc_status grow(llmc_session *session, llmc_region *region, size_t bytes, size_t keep, llmc_error *error) {
    gpu *s = session->model->on_device;
    context none;
    int result = s->cuda.push(s->context);
    if (result != 0) return llmc_cuda_fail(s, result, "use the GPU", error);
    result = regrow(s, session->on_device, region, bytes, keep);
    (void)s->cuda.pop(&none);
    return result == 0 ? LLMC_OK : llmc_cuda_fail(s, result, "find memory", error);
}

static void release(llmc_session *session, llmc_region *region, int forked) {
    gpu *s = session->model->on_device;
    context none;
    if (forked || s->cuda.push(s->context) != 0) return;
    (void)s->cuda.release_memory(address(region->at));
    (void)s->cuda.pop(&none);
}

/* The launches of a run come after it in the stream. */
static llmc_status copy(llmc_session *session, void *to, const void *from, size_t bytes, llmc_error *error) {
    gpu *s = session->model->on_device;
    stream own = session->on_device->stream;
    context none;
    int result = s->cuda.push(s->context);
    if (result != 0) return llmc_cuda_fail(s, result, "use the GPU", error);
    result = from ? s->cuda.copy(address(to), address(from), bytes, own) : s->cuda.zero(address(to), 0, bytes, own);
    (void)s->cuda.pop(&none);
    return result == 0 ? LLMC_OK : llmc_cuda_fail(s, result, "copy a state", error);
}

static llmc_status fetch(llmc_session *session, void *to, const void *from, size_t bytes, llmc_error *error) {
    gpu *s = session->model->on_device;
    stream own = session->on_device->stream;
    context none;
    int result = s->cuda.push(s->context);
    if (result != 0) return llmc_cuda_fail(s, result, "use the GPU", error);
    if (bytes) result = s->cuda.download(to, address(from), bytes, own);
    if (result == 0) result = s->cuda.wait(own);
    (void)s->cuda.pop(&none);
    return result == 0 ? LLMC_OK : llmc_cuda_fail(s, result, "copy a state", error);
}

static llmc_status store(llmc_session *session, void *to, const void *from, size_t bytes, llmc_error *error) {
    gpu *s = session->model->on_device;
    stream own = session->on_device->stream;
    context none;
    int result = s->cuda.push(s->context);
    if (result != 0) return llmc_cuda_fail(s, result, "use the GPU", error);
    if (bytes) result = s->cuda.upload(address(to), from, bytes, own);
    if (result == 0) result = s->cuda.wait(own);
    (void)s->cuda.pop(&none);
    return result == 0 ? LLMC_OK : llmc_cuda_fail(s, result, "copy a state", error);
}

static size_t input_bytes(const llmc_function *f, const int64_t *sizes, int i) {
    int64_t shape[LLMC_MAX_RANK];
    llmc_input_shape(f, sizes, i, shape);
    return llmc_elements(f->inputs[i].rank, shape) * llmc_dtype_size(f->inputs[i].dtype);
}

static size_t output_bytes(const llmc_function *f, const int64_t *sizes, int i) {
    int64_t shape[LLMC_MAX_RANK];
    llmc_output_shape(f, sizes, i, shape);
    return llmc_elements(f->outputs[i].rank, shape) * llmc_dtype_size(f->outputs[i].dtype);
}

static size_t padded(size_t bytes) {
    return (bytes + 256) / 256 * 256; /* never empty */
}

/* Addresses of inputs and outputs from `base` on; the size of all. NULL: only the size. */
static size_t place_ends(const llmc_function *f, const int64_t *sizes, device_pointer base, device_pointer *at) {
    size_t used = 0;
    int i;
    for (i = 0; i < f->n_inputs; i++) {
        if (at) at[i] = base + used;
        used += padded(input_bytes(f, sizes, i));
    }
    for (i = 0; i < f->n_outputs; i++) {
        if (at) at[f->n_inputs + i] = base + used;
        used += padded(output_bytes(f, sizes, i));
    }
    return used;
}

static size_t run_bytes(const llmc_session *session, const llmc_function *f, const int64_t *sizes, size_t parts) {
    (void)session;
    return llmc_held_for(f->arena_bytes(sizes) + parts) + llmc_held_for(place_ends(f, sizes, 0, NULL));
}

static void note(lane *l, int result, const char *doing) {
    if (l->failed || result == 0) return;
    l->failed = result;
    l->doing = doing;
}

/* Whether the rest of the run is not worth its time. */
static int is_over(llmc_session *session) {
    return session->on_device->failed || llmc_is_over(session);
}

void llmc_launch(llmc_frame *frame, int step, int kernel, const uint64_t *arguments, int n, int64_t blocks) {
    llmc_session *session = (llmc_session *)frame->runtime;
    gpu *s = session->model->on_device;
    lane *l = session->on_device;
    void *parameters[MOST_ARGUMENTS];
    double begin = session->step_seconds ? llmc_now() : 0;
    unsigned threads = (unsigned)session->model->program->gpu->kernels[kernel].threads;
    int i;
    if (is_over(session) || blocks == 0) return;
    if (n > MOST_ARGUMENTS || blocks > INT32_MAX) {
        note(l, 1, "launch so large a kernel"); /* CUDA_ERROR_INVALID_VALUE */
        return;
    }
    for (i = 0; i < n; i++) parameters[i] = (void *)&arguments[i];
    note(l,
         s->cuda.launch(s->kernels[kernel], (unsigned)blocks, 1, 1, threads, 1, 1, 0, l->stream, parameters, NULL),
         "launch a kernel");
    if (!session->step_seconds) return;
    note(l, s->cuda.wait(l->stream), "run a kernel");
    session->step_seconds[step] += llmc_now() - begin;
}

void llmc_copy(llmc_frame *frame, int step, void *to, const void *from, size_t bytes) {
    llmc_session *session = (llmc_session *)frame->runtime;
    lane *l = session->on_device;
    (void)step;
    if (is_over(session) || !bytes) return;
    note(l, session->model->on_device->cuda.copy(address(to), address(from), bytes, l->stream), "copy a value");
}

static void run_kernels(llmc_session *session, const llmc_function *f, const llmc_tensor *outputs,
                        const int64_t *sizes) {
    gpu *s = session->model->on_device;
    lane *l = session->on_device;
    llmc_frame frame;
    int i;
    place_ends(f, sizes, address(l->ends.at), l->at);
    for (i = 0; i < f->n_inputs; i++) {
        size_t bytes = input_bytes(f, sizes, i);
        if (bytes) note(l, s->cuda.upload(l->at[i], session->inputs[i], bytes, l->stream), "take an input");
    }
    for (i = 0; i < f->n_inputs; i++) session->inputs[i] = (const void *)(uintptr_t)l->at[i];
    for (i = 0; i < f->n_outputs; i++) session->outputs[i] = (void *)(uintptr_t)l->at[f->n_inputs + i];
    frame.dims = sizes;
    frame.weights = (const unsigned char *)(uintptr_t)s->weights;
    frame.inputs = session->inputs;
    frame.outputs = session->outputs;
    frame.runtime = session;
    llmc_place_parts(session, f, &frame);
    f->run(&frame, session->model->variant->kernels);
    for (i = 0; i < f->n_outputs; i++) {
        size_t bytes = output_bytes(f, sizes, i);
        if (is_over(session) || !bytes) continue;
        note(l, s->cuda.download(outputs[i].data, l->at[f->n_inputs + i], bytes, l->stream), "give an output");
    }
    note(l, s->cuda.wait(l->stream), "run the kernels");
}

static llmc_status run(llmc_session *session, const llmc_function *f, const llmc_tensor *outputs, const int64_t *sizes,
                       llmc_error *error) {
    gpu *s = session->model->on_device;
    lane *l = session->on_device;
    context none;
    int result;
    size_t bytes = f->arena_bytes(sizes) + session->part_bytes;
    llmc_status status = llmc_reserve(session, &llmc_cuda, &session->arena, bytes, 0, error);
    if (status == LLMC_OK)
        status = llmc_reserve(session, &llmc_cuda, &l->ends, place_ends(f, sizes, 0, NULL), 0, error);
    if (status != LLMC_OK) return status;
    result = s->cuda.push(s->context);
    if (result != 0) return llmc_cuda_fail(s, result, "use the GPU", error);
    l->failed = 0;
    run_kernels(session, f, outputs, sizes);
    (void)s->cuda.pop(&none);
    return l->failed ? llmc_cuda_fail(s, l->failed, l->doing, error) : LLMC_OK;
}

static double unknown(llmc_session *session) {
    (void)session;
    return 0;
}

const llmc_device llmc_cuda = {1,    llmc_cuda_open, llmc_cuda_close, open_session, close_session, grow, release,
                               copy, fetch,          store,           run_bytes,    run,           unknown, unknown,
                               NULL};
