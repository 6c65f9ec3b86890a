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

int64_t llmc_samples_at_once(const llmc_session *session, const llmc_function *function, const int64_t *sizes) {
    int d = function->samples - 1;
    size_t bytes, room;
    int64_t runs;
    if (d < 0 || sizes[d] < 2) return d < 0 ? 1 : sizes[d];
    bytes = function->arena_bytes(sizes);
    room = (size_t)LLMC_SAMPLES_ROOM * (size_t)session->pool_can->threads(session->pool);
    runs = (int64_t)((bytes + room - 1) / room);
    if (runs < 1) runs = 1;
    return runs < sizes[d] ? (sizes[d] + runs - 1) / runs : 1;
}

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

size_t llmc_arena_of_samples(const llmc_session *session, const llmc_function *function, const int64_t *sizes) {
    int64_t count = llmc_samples_at_once(session, function, sizes), part[LLMC_MAX_DIMS];
    if (function->samples == 0 || count == sizes[function->samples - 1]) return function->arena_bytes(sizes);
    sizes_of(session, function, sizes, count, part);
    return function->arena_bytes(part);
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

/* Run them in turn; `part` is where the sizes of each run are put. */
static void run_in_turn(llmc_session *session, const llmc_function *function, llmc_frame *frame, const int64_t *sizes,
                        int64_t at_once, int64_t *part) {
    const int64_t all = sizes[function->samples - 1];
    int64_t first;
    for (first = 0; first < all && !llmc_is_over(session); first += at_once) {
        sizes_of(session, function, sizes, all - first < at_once ? all - first : at_once, part);
        count(session, function, part);
        function->run(frame, session->model->variant->kernels);
        go_on(session, function, sizes, at_once);
    }
}

void llmc_run_samples(llmc_session *session, const llmc_function *function, const int64_t *sizes) {
    int64_t at_once = llmc_samples_at_once(session, function, sizes), part[LLMC_MAX_DIMS];
    int whole = function->samples == 0 || at_once == sizes[function->samples - 1];
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
        run_in_turn(session, function, &frame, sizes, at_once, part);
}
