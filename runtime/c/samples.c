/*
 * samples.c - a large batch as smaller ones, so that what goes from kernel to kernel stays in the caches of the cores.
 *
 * Where a compile has shown that each sample is computed for itself, no bit depends on how many run at once. Then a run
 * whose intermediate results would take more than ROOM for each thread is made of several, one after the other, in
 * memory for one of them. Less room than that and weights are read from memory too often.
 */
#include <string.h>

#include "model.h"

#ifndef LLMC_SAMPLES_ROOM
#define LLMC_SAMPLES_ROOM (4u << 20) /* bytes: about twice a core's second-level cache */
#endif

/* The sizes of a run of `count` of the samples: of what is counted, as many as all samples have, or as places are. */
static void sizes_of(const llmc_session *session, const llmc_function *function, const int64_t *sizes, int64_t count,
                     int64_t *part) {
    const llmc_program *program = session->model->program;
    int c;
    memcpy(part, sizes, LLMC_MAX_DIMS * sizeof *part);
    part[function->samples - 1] = count;
    llmc_count_dims(program, function, NULL, part);
    for (c = program->n_dims; c < program->n_dims + function->n_counted; c++)
        if (part[c] > sizes[c]) part[c] = sizes[c];
}

static int are_several(const llmc_function *function, const int64_t *sizes) {
    return function->samples > 0 && sizes[function->samples - 1] > 1;
}

/* What a run of all samples takes or, if that is more, ROOM for each thread, or what one of them takes: never more for
 * fewer samples, or for more padding among them. */
size_t llmc_arena_of_samples(const llmc_session *session, const llmc_function *function, const int64_t *sizes) {
    size_t bytes = function->arena_bytes(sizes), room, one;
    int64_t part[LLMC_MAX_DIMS];
    room = (size_t)LLMC_SAMPLES_ROOM * (size_t)session->pool_can->threads(session->pool);
    if (bytes <= room || !are_several(function, sizes)) return bytes;
    sizes_of(session, function, sizes, 1, part);
    one = function->arena_bytes(part);
    return one > room ? one : room;
}

/* Count, of the samples that the session's inputs point at, what the data decides. */
static void count(const llmc_session *session, const llmc_function *function, int64_t *part) {
    int c;
    for (c = 0; c < function->n_counted; c++) {
        int input = function->counted[c];
        int64_t shape[LLMC_MAX_RANK];
        llmc_tensor mask;
        memset(&mask, 0, sizeof mask);
        mask.dtype = function->inputs[input].dtype;
        mask.data = (void *)(uintptr_t)session->inputs[input];
        llmc_input_shape(function, part, input, shape);
        part[session->model->program->n_dims + c] = llmc_kept(&mask, llmc_elements(2, shape), (size_t)shape[1]);
    }
}

/* What `count` samples more make of the bytes of an input, or of an output; 0 if all samples share it. */
static size_t bytes_of(const llmc_function *function, const int64_t *sizes, int64_t count, int input, int i) {
    const llmc_tensor_spec *spec = input ? &function->inputs[i] : &function->outputs[i];
    int64_t shape[LLMC_MAX_RANK], fewer[LLMC_MAX_RANK], less[LLMC_MAX_DIMS];
    memcpy(less, sizes, sizeof less);
    less[function->samples - 1] -= 1;
    (input ? llmc_input_shape : llmc_output_shape)(function, sizes, i, shape);
    (input ? llmc_input_shape : llmc_output_shape)(function, less, i, fewer);
    return (llmc_elements(spec->rank, shape) - llmc_elements(spec->rank, fewer)) * llmc_dtype_size(spec->dtype) *
           (size_t)count;
}

/* Point what the session reads and writes at the samples after the next `count`. */
static void go_on(llmc_session *session, const llmc_function *function, const int64_t *sizes, int64_t count) {
    int i;
    for (i = 0; i < function->n_inputs; i++)
        session->inputs[i] = (const unsigned char *)session->inputs[i] + bytes_of(function, sizes, count, 1, i);
    for (i = 0; i < function->n_outputs; i++)
        session->outputs[i] = (unsigned char *)session->outputs[i] + bytes_of(function, sizes, count, 0, i);
}

/* How many of the `left` samples that the session's inputs point at run next, in `room`: of `share` as many as fit. */
static int64_t next_count(const llmc_session *session, const llmc_function *function, const int64_t *sizes,
                          int64_t left, int64_t share, size_t room, int64_t *part) {
    int64_t n = left < share ? left : share;
    for (;;) {
        size_t bytes;
        int64_t fit;
        sizes_of(session, function, sizes, n, part);
        count(session, function, part);
        bytes = function->arena_bytes(part);
        if (bytes <= room || n == 1) return n;
        fit = (int64_t)((double)n * (double)room / (double)bytes);
        n = fit < 1 ? 1 : fit < n ? fit : n - 1;
    }
}

/* Run them in turn, about as many each time; `part` is where the sizes of each run are put. */
static void run_in_turn(llmc_session *session, const llmc_function *function, llmc_frame *frame, const int64_t *sizes,
                        size_t room, int64_t *part) {
    const int64_t all = sizes[function->samples - 1], runs = (int64_t)((function->arena_bytes(sizes) + room - 1) / room);
    const int64_t share = (all + runs - 1) / runs;
    int64_t first, n;
    for (first = 0; first < all && !llmc_is_over(session); first += n) {
        n = next_count(session, function, sizes, all - first, share, room, part);
        function->run(frame, session->model->variant->kernels);
        go_on(session, function, sizes, n);
    }
}

void llmc_run_samples(llmc_session *session, const llmc_function *function, const int64_t *sizes) {
    size_t room = llmc_arena_of_samples(session, function, sizes);
    int64_t part[LLMC_MAX_DIMS];
    int whole = function->arena_bytes(sizes) <= room;
    llmc_frame frame;
    frame.weights = session->model->map + LLMC_WEIGHTS_HEADER;
    frame.inputs = session->inputs;
    frame.outputs = session->outputs;
    frame.runtime = session;
    frame.dims = sizes;
    llmc_place_parts(session, function, &frame);
    frame.dims = whole ? sizes : part;
    if (whole)
        function->run(&frame, session->model->variant->kernels);
    else
        run_in_turn(session, function, &frame, sizes, room, part);
}
