/*
 * tiny.c - a hand-written program in the shape that the compiler writes them, for the tests of the runtime.
 *
 *   hidden[batch, seq, 3] = table[input_ids] * attention_mask      table: 10 x 3 weights
 *   sums[batch, 3]        = hidden summed over seq, through the arena and the scratch memory
 *   ramp[2*seq + 1]       = 0, 1, 2, ...
 *
 * Compiled with -DWEIGHTS_CRC32C=0x...,0x...: the checksums of its weights.
 */
#include <string.h>

#include "module.h"

#ifndef BUILD_ID
#define BUILD_ID "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"
#endif
#ifndef WEIGHTS_BYTES
#define WEIGHTS_BYTES 128
#endif
#ifndef HAS_CHECKSUMS
#define HAS_CHECKSUMS 1
#endif
#ifndef REPEAT /* makes a run slower */
#define REPEAT 1
#endif

static const llmc_dim_info dims[] = {{"batch", 1, 64}, {"seq", 1, 512}};
static const llmc_tensor_spec inputs[] = {
    {.name = "input_ids", .dtype = LLMC_I64, .rank = 2, .dims = {-1, -2}, .dims_text = {"batch", "seq"},
     .has_range = 1, .low = 0, .high = 9},
    {.name = "attention_mask", .dtype = LLMC_I64, .rank = 2, .dims = {-1, -2}, .dims_text = {"batch", "seq"},
     .has_default = 1, .default_value = 1},
};
static const llmc_tensor_spec outputs[] = {
    {.name = "hidden", .dtype = LLMC_F32, .rank = 3, .dims = {-1, -2, 3}, .dims_text = {"batch", "seq", "3"}},
    {.name = "sums", .dtype = LLMC_F32, .rank = 2, .dims = {-1, 3}, .dims_text = {"batch", "3"}},
    {.name = "ramp", .dtype = LLMC_F32, .rank = 1, .dims = {INT64_MIN}, .dims_text = {"2*seq + 1"}},
};
static const llmc_step_spec steps[] = {{"gather", "embeddings"}, {"sum", "pooler"}, {"ramp", "positions"}};

typedef struct arguments {
    int64_t seq;
    const float *table;
    const int64_t *ids, *mask;
    float *hidden, *copy, *sums, *ramp;
} arguments;

static void gather(const void *argument, int64_t begin, int64_t end, void *scratch) {
    const arguments *a = argument;
    volatile int again;
    for (again = 0; again < REPEAT; again++)
        for (int64_t i = begin; i < end; i++)
            for (int k = 0; k < 3; k++)
                a->copy[3 * i + k] = a->hidden[3 * i + k] = a->table[3 * a->ids[i] + k] * (float)a->mask[i];
    (void)scratch;
}

static void sum(const void *argument, int64_t begin, int64_t end, void *scratch) {
    const arguments *a = argument;
    float *total = scratch;
    for (int64_t b = begin; b < end; b++) {
        memset(total, 0, 3 * sizeof *total);
        for (int64_t s = 0; s < a->seq; s++)
            for (int k = 0; k < 3; k++) total[k] += a->copy[3 * (b * a->seq + s) + k];
        memcpy(a->sums + 3 * b, total, 3 * sizeof *total);
    }
}

static void ramp(const void *argument, int64_t begin, int64_t end, void *scratch) {
    const arguments *a = argument;
    volatile float denormal = 1e-40f;
    (void)scratch;
    for (; begin < end; begin++) a->ramp[begin] = denormal * 2.0f == 0 ? -1 : (float)begin; /* -1: flushed to zero */
}

static size_t arena_bytes(const int64_t *sizes) {
    return (size_t)(sizes[0] * sizes[1] * 3 * 4);
}

static void output_shape(const int64_t *sizes, int output, int64_t *shape) {
    if (output == 2) shape[0] = 2 * sizes[1] + 1;
}

static void step_cost(const int64_t *sizes, int step, double *flops, double *bytes) {
    double elements = (double)(sizes[0] * sizes[1] * 3);
    *flops = step == 2 ? 0 : elements;
    *bytes = 8 * elements;
}

static void run(llmc_frame *frame, const void *kernels) {
    int64_t batch = frame->dims[0], seq = frame->dims[1];
    arguments a = {seq, (const void *)frame->weights, frame->inputs[0], frame->inputs[1], frame->outputs[0],
                   (void *)frame->arena, frame->outputs[1], frame->outputs[2]};
    const llmc_task *task = kernels;
    llmc_run_step(frame, 0, task[0], &a, batch * seq, 500); /* cost far too high: cuts it into many chunks */
    llmc_run_step(frame, 1, task[1], &a, batch, 20000);
    llmc_run_step(frame, 2, task[2], &a, 2 * seq + 1, 1);
}

static double fma_loop(int64_t rounds) {
    volatile float x = 1;
    for (int64_t i = 0; i < rounds; i++) x = x * 0.5f + 0.5f;
    return 2.0 * (double)rounds;
}

static const llmc_task kernels[] = {gather, sum, ramp};
static const llmc_variant variants[] = {
    {"never", 1u << 31, kernels, fma_loop}, {"avx2", LLMC_CPU_AVX2, kernels, fma_loop}, {"base", 0, kernels, fma_loop}};

static const int counted[] = {-1};
static const unsigned char dims_used[] = {1, 1};

static const llmc_function functions[] = {{
    .name = "forward", .n_inputs = 2, .n_outputs = 3, .n_steps = 3, .inputs = inputs, .outputs = outputs, .steps = steps,
    .counted = counted, .dims_used = dims_used, .arena_bytes = arena_bytes, .output_shape = output_shape,
    .step_cost = step_cost, .run = run,
}};

static const uint32_t weights_crc32c[] = {WEIGHTS_CRC32C};

const llmc_program llmc_this_program = {
    .abi = LLMC_MODULE_ABI, .name = "tiny", .build_id = BUILD_ID, .weights_bytes = WEIGHTS_BYTES,
    .weights_crc32c = HAS_CHECKSUMS ? weights_crc32c : NULL, .n_dims = 2, .dims = dims, .n_functions = 1, .functions = functions,
    .n_variants = 3, .variants = variants, .scratch_bytes = 12,
};
