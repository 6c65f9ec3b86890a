/*
 * tally.c - a hand-written program with states and three functions, for the tests of sessions.
 *
 *   states   total f32[batch, 3]   replaced: it keeps its shape
 *            seen  i64[past, batch]   appended to
 *            trail f32[batch, past]   replaced by a longer one: its axis that grows is not the first
 *   step     total + (sum of ids, number of ids, sum of their squares) -> total and output `sums`; ids -> behind seen and
 *            trail; history[batch, past + seq] = seen * mask. Then it naps `rounds` milliseconds, one step each.
 *   peek     total * scale, trail
 *   square   ids * ids, without any state
 */
#define _POSIX_C_SOURCE 199309L
#include <string.h>
#include <time.h>

#include "module.h"

#define BUILD_ID "fedcba9876543210fedcba9876543210fedcba9876543210fedcba9876543210"
#ifndef WEIGHTS_SHA256
#define WEIGHTS_SHA256 0
#endif

enum { BATCH, SEQ, PAST, N_DIMS };
enum { TOTAL, SEEN, TRAIL, N_STATES };

static const llmc_dim_info dims[] = {{"batch", 1, 4}, {"seq", 1, 8}, {"past", 0, 40}};
static const llmc_state_spec states[] = {
    {.name = "total", .dtype = LLMC_F32, .rank = 2, .dims = {-1, 3}, .dims_text = {"batch", "3"}, .grows = -1},
    {.name = "seen", .dtype = LLMC_I64, .rank = 2, .dims = {-3, -1}, .dims_text = {"past", "batch"}, .grows = 0},
    {.name = "trail", .dtype = LLMC_F32, .rank = 2, .dims = {-1, -3}, .dims_text = {"batch", "past"}, .grows = 1},
};

#define IDS {.name = "ids", .dtype = LLMC_I64, .rank = 2, .dims = {-1, -2}, .dims_text = {"batch", "seq"}, \
             .has_range = 1, .low = 0, .high = 9}

static const llmc_tensor_spec step_inputs[] = {
    IDS,
    {.name = "mask", .dtype = LLMC_I64, .rank = 2, .dims = {-1, INT64_MIN}, .dims_text = {"batch", "past + seq"},
     .has_default = 1, .default_value = 1},
    {.name = "rounds", .dtype = LLMC_I64, .rank = 0, .has_default = 1, .default_value = 0},
};
static const llmc_tensor_spec step_outputs[] = {
    {.name = "sums", .dtype = LLMC_F32, .rank = 2, .dims = {-1, 3}, .dims_text = {"batch", "3"}},
    {.name = "history", .dtype = LLMC_I64, .rank = 2, .dims = {-1, INT64_MIN}, .dims_text = {"batch", "past + seq"}},
};
static const llmc_tensor_spec peek_inputs[] = {
    {.name = "scale", .dtype = LLMC_F32, .rank = 0, .has_default = 1, .default_value = 1}};
static const llmc_tensor_spec peek_outputs[] = {
    {.name = "scaled", .dtype = LLMC_F32, .rank = 2, .dims = {-1, 3}, .dims_text = {"batch", "3"}},
    {.name = "trail", .dtype = LLMC_F32, .rank = 2, .dims = {-1, -3}, .dims_text = {"batch", "past"}},
};
static const llmc_tensor_spec square_inputs[] = {IDS};
static const llmc_tensor_spec square_outputs[] = {
    {.name = "squares", .dtype = LLMC_I64, .rank = 2, .dims = {-1, -2}, .dims_text = {"batch", "seq"}}};
static const llmc_step_spec step_steps[] = {
    {"sum", "total"}, {"add", "total"}, {"append", "seen"}, {"concat", "trail"}, {"gather", "history"}, {"nap", "rounds"}};
static const llmc_step_spec peek_steps[] = {{"scale", "total"}, {"copy", "trail"}};
static const llmc_step_spec square_steps[] = {{"multiply", "ids"}};

typedef struct arguments {
    int64_t batch, seq, past;
    const int64_t *ids, *mask;
    const float *total, *trail, *scale;
    int64_t *seen, *history;
    float *part, *new_total, *new_trail, *sums;
} arguments;

static void sum(const void *argument, int64_t begin, int64_t end, void *scratch) {
    const arguments *a = argument;
    (void)scratch;
    for (int64_t b = begin; b < end; b++) {
        memset(a->part + 3 * b, 0, 3 * sizeof(float));
        for (int64_t s = 0; s < a->seq; s++) {
            float id = (float)a->ids[b * a->seq + s];
            a->part[3 * b] += id;
            a->part[3 * b + 1] += 1;
            a->part[3 * b + 2] += id * id;
        }
    }
}

static void add(const void *argument, int64_t begin, int64_t end, void *scratch) {
    const arguments *a = argument;
    (void)scratch;
    for (int64_t i = begin; i < end; i++) a->sums[i] = a->new_total[i] = a->total[i] + a->part[i];
}

static void append(const void *argument, int64_t begin, int64_t end, void *scratch) {
    const arguments *a = argument;
    (void)scratch;
    for (int64_t s = begin; s < end; s++)
        for (int64_t b = 0; b < a->batch; b++) a->seen[(a->past + s) * a->batch + b] = a->ids[b * a->seq + s];
}

static void concat(const void *argument, int64_t begin, int64_t end, void *scratch) {
    const arguments *a = argument;
    (void)scratch;
    for (int64_t b = begin; b < end; b++) {
        float *to = a->new_trail + b * (a->past + a->seq);
        for (int64_t p = 0; p < a->past; p++) to[p] = a->trail[b * a->past + p];
        for (int64_t s = 0; s < a->seq; s++) to[a->past + s] = (float)a->ids[b * a->seq + s];
    }
}

static void gather(const void *argument, int64_t begin, int64_t end, void *scratch) {
    const arguments *a = argument;
    int64_t length = a->past + a->seq;
    (void)scratch;
    for (int64_t b = begin; b < end; b++)
        for (int64_t p = 0; p < length; p++)
            a->history[b * length + p] = a->seen[p * a->batch + b] * a->mask[b * length + p];
}

static void nap(const void *argument, int64_t begin, int64_t end, void *scratch) {
    const struct timespec millisecond = {0, 1000000};
    (void)argument, (void)scratch;
    for (; begin < end; begin++) nanosleep(&millisecond, NULL);
}

static void scale(const void *argument, int64_t begin, int64_t end, void *scratch) {
    const arguments *a = argument;
    (void)scratch;
    for (int64_t i = begin; i < end; i++) a->sums[i] = a->total[i] * *a->scale;
}

static void copy(const void *argument, int64_t begin, int64_t end, void *scratch) {
    const arguments *a = argument;
    (void)scratch;
    for (int64_t i = begin; i < end; i++) a->new_trail[i] = a->trail[i];
}

static void multiply(const void *argument, int64_t begin, int64_t end, void *scratch) {
    const arguments *a = argument;
    (void)scratch;
    for (int64_t i = begin; i < end; i++) a->history[i] = a->ids[i] * a->ids[i];
}

#define COST 20000 /* far too high: so that threads share the work */

static void run_step(llmc_frame *f, const void *kernels) {
    const int64_t batch = f->dims[BATCH], seq = f->dims[SEQ], past = f->dims[PAST];
    const int64_t rounds = *(const int64_t *)f->inputs[2];
    const llmc_task *task = kernels;
    arguments a = {.batch = batch, .seq = seq, .past = past, .ids = f->inputs[0], .mask = f->inputs[1],
                   .total = f->states[TOTAL], .trail = f->states[TRAIL], .seen = f->states[SEEN],
                   .part = (void *)f->arena, .new_total = f->next[TOTAL], .new_trail = f->next[TRAIL],
                   .sums = f->outputs[0], .history = f->outputs[1]};
    llmc_run_step(f, 0, task[0], &a, batch, COST);
    llmc_run_step(f, 1, task[1], &a, 3 * batch, COST);
    llmc_run_step(f, 2, task[2], &a, seq, COST);
    llmc_run_step(f, 3, task[3], &a, batch, COST);
    llmc_run_step(f, 4, task[4], &a, batch, COST);
    for (int64_t i = 0; i < rounds; i++) llmc_run_step(f, 5, task[5], &a, 1, COST);
}

static void run_peek(llmc_frame *f, const void *kernels) {
    const llmc_task *task = kernels;
    arguments a = {.total = f->states[TOTAL], .trail = f->states[TRAIL], .scale = f->inputs[0], .sums = f->outputs[0],
                   .new_trail = f->outputs[1]};
    llmc_run_step(f, 0, task[6], &a, 3 * f->dims[BATCH], COST);
    llmc_run_step(f, 1, task[7], &a, f->dims[BATCH] * f->dims[PAST], COST);
}

static void run_square(llmc_frame *f, const void *kernels) {
    const llmc_task *task = kernels;
    arguments a = {.ids = f->inputs[0], .history = f->outputs[0]};
    llmc_run_step(f, 0, task[8], &a, f->dims[BATCH] * f->dims[SEQ], COST);
}

static size_t step_arena(const int64_t *d) {
    return (size_t)d[BATCH] * 3 * sizeof(float);
}

static size_t no_arena(const int64_t *d) {
    (void)d;
    return 0;
}

static void step_shape(const int64_t *d, int i, int64_t *shape) {
    if (i == 1) shape[1] = d[PAST] + d[SEQ]; /* input 1 and output 1 alike */
}

static void no_shape(const int64_t *d, int i, int64_t *shape) {
    (void)d, (void)i, (void)shape;
}

static size_t state_bytes(const int64_t *d, int state, int after) {
    size_t length = (size_t)(d[PAST] + (after ? d[SEQ] : 0)), batch = (size_t)d[BATCH];
    return state == TOTAL ? batch * 3 * 4 : state == SEEN ? length * batch * 8 : length * batch * 4;
}

static size_t peek_bytes(const int64_t *d, int state, int after) {
    (void)after;
    return state == TOTAL ? (size_t)d[BATCH] * 12 : (size_t)(d[BATCH] * d[PAST]) * 4;
}

static int64_t state_length(const int64_t *d, int state) {
    (void)state;
    return d[PAST] + d[SEQ];
}

static int64_t same_length(const int64_t *d, int state) {
    (void)state;
    return d[PAST];
}

static void step_cost(const int64_t *d, int step, double *flops, double *bytes) {
    *flops = step < 2 ? (double)(3 * d[BATCH]) : 0;
    *bytes = (double)(8 * d[BATCH] * (d[PAST] + d[SEQ]));
}

static void square_cost(const int64_t *d, int step, double *flops, double *bytes) {
    (void)step;
    *flops = (double)(d[BATCH] * d[SEQ]);
    *bytes = 16 * *flops;
}

static const int counted[] = {-1};
static const unsigned char step_dims[] = {1, 1, 1}, peek_dims[] = {1, 0, 1}, square_dims[] = {1, 1, 0};
static const unsigned char step_use[] = {LLMC_STATE_REPLACED, LLMC_STATE_APPENDED, LLMC_STATE_REPLACED};
static const unsigned char peek_use[] = {LLMC_STATE_READ, LLMC_STATE_UNUSED, LLMC_STATE_READ};
static const unsigned char square_use[] = {LLMC_STATE_UNUSED, LLMC_STATE_UNUSED, LLMC_STATE_UNUSED};

static const llmc_function functions[] = {
    {.name = "step", .n_inputs = 3, .n_outputs = 2, .n_steps = 6, .inputs = step_inputs, .outputs = step_outputs,
     .steps = step_steps, .counted = counted, .dims_used = step_dims, .state_use = step_use, .arena_bytes = step_arena,
     .input_shape = step_shape, .output_shape = step_shape, .state_bytes = state_bytes, .state_length = state_length,
     .step_cost = step_cost, .run = run_step},
    {.name = "peek", .n_inputs = 1, .n_outputs = 2, .n_steps = 2, .inputs = peek_inputs, .outputs = peek_outputs,
     .steps = peek_steps, .counted = counted, .dims_used = peek_dims, .state_use = peek_use, .arena_bytes = no_arena,
     .input_shape = no_shape, .output_shape = no_shape, .state_bytes = peek_bytes, .state_length = same_length,
     .step_cost = step_cost, .run = run_peek},
    {.name = "square", .n_inputs = 1, .n_outputs = 1, .n_steps = 1, .inputs = square_inputs, .outputs = square_outputs,
     .steps = square_steps, .counted = counted, .dims_used = square_dims, .state_use = square_use, .arena_bytes = no_arena,
     .input_shape = no_shape, .output_shape = no_shape, .state_bytes = state_bytes, .state_length = same_length,
     .step_cost = square_cost, .run = run_square},
};

static double fma_loop(int64_t rounds) {
    volatile float x = 1;
    for (int64_t i = 0; i < rounds; i++) x = x * 0.5f + 0.5f;
    return 2.0 * (double)rounds;
}

static const llmc_task kernels[] = {sum, add, append, concat, gather, nap, scale, copy, multiply};
static const llmc_variant variants[] = {{"base", 0, kernels, fma_loop}};

static const uint32_t weights_crc32c[] = {WEIGHTS_CRC32C};

const llmc_program llmc_this_program = {
    .abi = LLMC_MODULE_ABI, .name = "tally", .build_id = BUILD_ID, .weights_bytes = 64, .weights_crc32c = weights_crc32c,
    .n_dims = N_DIMS, .dims = dims, .n_functions = 3, .functions = functions, .n_states = N_STATES, .states = states,
    .n_variants = 1, .variants = variants, .scratch_bytes = 12,
};
