/*
 * ledger.c - a hand-written CUDA program with states, for the tests of sessions on a GPU.
 *
 *   states   total i64[1]      replaced
 *            seen  i64[past]   appended to
 *            pairs i64[2, past]  replaced by a longer one: its axis that grows is not the first
 *   step     ids[seq] -> sum[1] = total + sum of ids, history[past + seq], both[2, past + seq]
 */
#include "module.h"

#define BUILD_ID "abcdefabcdefabcdabcdefabcdefabcdabcdefabcdefabcdabcdefabcdefabcd"

enum { SEQ, PAST };
enum { TOTAL, SEEN, PAIRS };

static const uint32_t image[4] = {0xBA55ED50u};
static const llmc_gpu_kernel gpu_kernels[] = {{"add_up", 32}};
static const llmc_gpu_code gpu_code = {image, "sm_80", 1, gpu_kernels};

static const llmc_dim_info dims[] = {{"seq", 1, 8}, {"past", 0, 100}};
static const llmc_state_spec states[] = {
    {.name = "total", .dtype = LLMC_I64, .rank = 1, .dims = {1}, .dims_text = {"1"}, .grows = -1},
    {.name = "seen", .dtype = LLMC_I64, .rank = 1, .dims = {-2}, .dims_text = {"past"}, .grows = 0},
    {.name = "pairs", .dtype = LLMC_I64, .rank = 2, .dims = {2, -2}, .dims_text = {"2", "past"}, .grows = 1},
};
static const llmc_tensor_spec inputs[] = {
    {.name = "ids", .dtype = LLMC_I64, .rank = 1, .dims = {-1}, .dims_text = {"seq"}}};
static const llmc_tensor_spec outputs[] = {
    {.name = "sum", .dtype = LLMC_I64, .rank = 1, .dims = {1}, .dims_text = {"1"}},
    {.name = "history", .dtype = LLMC_I64, .rank = 1, .dims = {INT64_MIN}, .dims_text = {"past + seq"}},
    {.name = "both", .dtype = LLMC_I64, .rank = 2, .dims = {2, INT64_MIN}, .dims_text = {"2", "past + seq"}},
};
static const llmc_step_spec steps[] = {{"add_up", "total"}, {"append", "seen"}, {"concat", "pairs"}};

static void run(llmc_frame *f, const void *kernels) {
    const size_t seq = (size_t)f->dims[SEQ] * 8, past = (size_t)f->dims[PAST] * 8, all = seq + past;
    const uint64_t a[] = {(uint64_t)(uintptr_t)f->inputs[0], (uint64_t)(uintptr_t)f->states[TOTAL],
                          (uint64_t)(uintptr_t)f->next[TOTAL], (uint64_t)f->dims[SEQ]};
    char *seen = f->states[SEEN], *pairs = f->next[PAIRS];
    const char *old = f->states[PAIRS];
    (void)kernels;
    llmc_launch(f, 0, 0, a, 4, 1);
    llmc_copy(f, 0, f->outputs[0], f->next[TOTAL], 8);
    llmc_copy(f, 1, seen + past, f->inputs[0], seq);
    llmc_copy(f, 1, f->outputs[1], seen, all);
    for (int row = 0; row < 2; row++) {
        llmc_copy(f, 2, pairs + row * all, old + row * past, past);
        llmc_copy(f, 2, pairs + row * all + past, f->inputs[0], seq);
    }
    llmc_copy(f, 2, f->outputs[2], pairs, 2 * all);
}

static size_t arena_bytes(const int64_t *d) {
    (void)d;
    return 0;
}

static void output_shape(const int64_t *d, int output, int64_t *shape) {
    if (output) shape[output - 1] = d[SEQ] + d[PAST];
}

static size_t state_bytes(const int64_t *d, int state, int after) {
    size_t length = (size_t)(d[PAST] + (after ? d[SEQ] : 0)) * 8;
    return state == TOTAL ? 8 : state == SEEN ? length : 2 * length;
}

static int64_t state_length(const int64_t *d, int state) {
    (void)state;
    return d[PAST] + d[SEQ];
}

static void step_cost(const int64_t *d, int step, double *flops, double *bytes) {
    *flops = step ? 0 : (double)d[SEQ];
    *bytes = 8 * (double)d[SEQ];
}

static const int counted[] = {-1};
static const unsigned char dims_used[] = {1, 1};
static const unsigned char state_use[] = {LLMC_STATE_REPLACED, LLMC_STATE_APPENDED, LLMC_STATE_REPLACED};

static const llmc_function functions[] = {
    {.name = "step", .n_inputs = 1, .n_outputs = 3, .n_steps = 3, .inputs = inputs, .outputs = outputs, .steps = steps,
     .counted = counted, .dims_used = dims_used, .state_use = state_use, .arena_bytes = arena_bytes,
     .output_shape = output_shape, .state_bytes = state_bytes, .state_length = state_length, .step_cost = step_cost,
     .run = run}};
static const llmc_variant variants[] = {{"cuda", 0, NULL, NULL}};

static const uint32_t weights_crc32c[] = {0x03c8eb67u}; /* 64 zeros */

const llmc_program llmc_this_program = {
    .abi = LLMC_MODULE_ABI, .name = "ledger", .build_id = BUILD_ID, .weights_bytes = 64,
    .weights_crc32c = weights_crc32c, .n_dims = 2, .dims = dims,
    .n_functions = 1, .functions = functions, .n_states = 3, .states = states, .n_variants = 1, .variants = variants,
    .device = &llmc_cuda, .gpu = &gpu_code,
};
