/*
 * words.c - a hand-written language model, for the tests of generation. With -DRECURRENT its state keeps its shape, with
 * -DSINGLE it runs for one session at a time, with -DDULL it is wrong about a third of all tokens, with -DWORDS_WINDOW=32 its
 * state has a window, of which it reads the last three, with -DADAPTERS a session chooses one of two, which make other
 * tokens of those it is given, with -DWORDS_WIDE=64 a token takes so many numbers, which say of all tokens before it too.
 *
 *   states   seen i64[past]   appended to; or folded i64[1], replaced: a hash of all tokens
 *   step     tokens -> behind the state; logits[1, kept, VOCABULARY] of the places in logits_to_keep, by the last three
 *            tokens, or by all where the state is a hash
 */
#include "words.h"

#include <string.h>

#include "module.h"

#define BUILD_ID "0f1e2d3c4b5a69780f1e2d3c4b5a69780f1e2d3c4b5a69780f1e2d3c4b5a6978"

enum { SEQ, KEPT, PAST };

#ifndef WORDS_WIDE
#define WORDS_WIDE 1
#endif
#define TEXT_OF(x) #x
#define AS_TEXT(x) TEXT_OF(x)
#define WIDE_TEXT AS_TEXT(WORDS_WIDE)

static const llmc_dim_info dims[] = {{"seq", 1, 16}, {"kept", 1, 8}, {"past", 0, WORDS_BOUND}};

static const llmc_tensor_spec inputs[] = {
    {.name = "input_ids", .dtype = LLMC_I64, .rank = 2, .dims = {1, -1}, .dims_text = {"1", "seq"}, .has_range = 1,
     .low = 0, .high = WORDS - 1},
    {.name = "logits_to_keep", .dtype = LLMC_I64, .rank = 1, .dims = {-2}, .dims_text = {"kept"}},
#ifdef ADAPTERS
    {.name = "adapter", .dtype = LLMC_I64, .rank = 2, .dims = {1, -1}, .dims_text = {"1", "seq"}, .has_range = 1,
     .low = 0, .high = 2, .has_default = 1},
#endif
};
static const llmc_tensor_spec outputs[] = {
    {.name = "logits", .dtype = LLMC_F32, .rank = 3, .dims = {1, -2, WORDS}, .dims_text = {"1", "kept", "41"}}};
static const llmc_step_spec steps[] = {{"append", "seen"}, {"head", "logits"}};

#ifdef RECURRENT
#define N_DIMS 2
static const llmc_state_spec states[] = {
    {.name = "folded", .dtype = LLMC_I64, .rank = 1, .dims = {1}, .dims_text = {"1"}, .grows = -1}};
static const unsigned char use[] = {LLMC_STATE_REPLACED}, dims_used[] = {1, 1};
#else
#define N_DIMS 3
static const llmc_state_spec states[] = {
    {.name = "seen", .dtype = LLMC_I64, .rank = WORDS_WIDE > 1 ? 2 : 1, .dims = {-3, WORDS_WIDE},
     .dims_text = {"past", WIDE_TEXT}, .grows = 0}};
static const unsigned char use[] = {LLMC_STATE_APPENDED}, dims_used[] = {1, 1, 1};
#endif

static uint64_t mixed(uint64_t x) {
    x = (x ^ x >> 31) * 0x9E3779B97F4A7C15u;
    return (x ^ x >> 29) * 0xBF58476D1CE4E5B9u;
}

void words_logits(uint64_t context, float *logits) {
    int v;
#ifdef DULL
    if (context % 3 == 0) context++;
#endif
    for (v = 0; v < WORDS; v++) logits[v] = (float)((mixed(context ^ (uint64_t)v << 40) >> 20) % 8000000) / 1000000 - 4;
}

uint64_t words_context(const int64_t *tokens, int64_t n) {
    uint64_t context = 1;
    int64_t i = n > 3 ? n - 3 : 0;
    for (; i < n; i++) context = mixed(context + (uint64_t)tokens[i] + 1);
    return context;
}

typedef struct arguments {
    int64_t seq, kept, past, *seen;
    const int64_t *tokens, *keep, *before, *adapter;
    float *logits;
} arguments;

/* Of all tokens up to number `i` of the call. */
static uint64_t trail(const arguments *a, int64_t i) {
    uint64_t hash = a->past ? (uint64_t)a->seen[(a->past - 1) * WORDS_WIDE + 1] - 1 : 1;
    int64_t k;
    for (k = 0; k <= i; k++) hash = mixed(hash + (uint64_t)(a->tokens[k] + (a->adapter ? WORDS * a->adapter[k] : 0)) + 1);
    return hash;
}

static void append(const void *argument, int64_t begin, int64_t end, void *scratch) {
    const arguments *a = argument;
    int64_t i;
    (void)scratch;
    for (i = begin; i < end; i++) {
        int64_t *row = a->seen + (a->past + i) * WORDS_WIDE, k;
        row[0] = a->tokens[i] + (a->adapter ? WORDS * a->adapter[i] : 0);
        for (k = 1; k < WORDS_WIDE; k++) row[k] = (int64_t)(trail(a, i) + (uint64_t)k);
    }
}

#ifdef WORDS_WINDOW
#define GONE(past) ((past) < WORDS_WINDOW ? 0 : (past) - WORDS_WINDOW + 1)
#else
#define GONE(past) 0
#endif

/* Whether each token of a wide state that the first of the call sees is there as it was written. */
static int is_whole(const arguments *a) {
    uint64_t hash = 1;
    int64_t first = GONE(a->past), i, k;
    for (i = first; i < a->past + a->seq && WORDS_WIDE > 1; i++) {
        const int64_t *row = a->seen + i * WORDS_WIDE;
        hash = i > 0 && i == first ? (uint64_t)row[1] - 1 : mixed(hash + (uint64_t)row[0] + 1);
        for (k = 1; k < WORDS_WIDE; k++)
            if (row[k] != (int64_t)(hash + (uint64_t)k)) return 0;
    }
    return 1;
}

static uint64_t last_three(const arguments *a, int64_t n) {
    int64_t last[3], i, first = n > 3 ? n - 3 : 0;
    for (i = first; i < n; i++) last[i - first] = a->seen[i * WORDS_WIDE];
    return words_context(last, n - first);
}

static void head(const void *argument, int64_t begin, int64_t end, void *scratch) {
    const arguments *a = argument;
    int64_t i;
    (void)scratch;
    for (i = begin; i < end; i++) {
        words_logits(last_three(a, a->past + a->keep[i] + 1), a->logits + i * WORDS);
        if (!is_whole(a)) memset(a->logits + i * WORDS, 0, WORDS * sizeof(float));
    }
}

static void fold(const void *argument, int64_t begin, int64_t end, void *scratch) {
    const arguments *a = argument;
    uint64_t context = (uint64_t)*a->before;
    int64_t i, k;
    (void)begin, (void)end, (void)scratch;
    for (i = 0; i < a->seq; i++) {
        context = mixed(context + (uint64_t)a->tokens[i] + 1);
        for (k = 0; k < a->kept; k++)
            if (a->keep[k] == i) words_logits(context, a->logits + k * WORDS);
    }
    *a->seen = (int64_t)context;
}

#define COST 20000 /* far too high: so that threads share the work */

static arguments part_of(const llmc_frame *f, const llmc_part *part) {
    arguments a;
    memset(&a, 0, sizeof a);
    a.seq = part->dims[SEQ];
    a.kept = part->dims[KEPT];
    a.past = N_DIMS > PAST ? part->dims[PAST] : 0;
    a.tokens = (const int64_t *)f->inputs[0] + part->before[SEQ];
    a.keep = (const int64_t *)f->inputs[1] + part->before[KEPT];
#ifdef ADAPTERS
    a.adapter = (const int64_t *)f->inputs[2] + part->before[SEQ];
#endif
    a.logits = (float *)f->outputs[0] + part->before[KEPT] * WORDS;
    a.before = part->states[0];
    a.seen = N_DIMS > PAST ? part->states[0] : part->next[0];
    return a;
}

static void run(llmc_frame *f, const void *kernels) {
    const llmc_task *task = kernels;
    int steps = N_DIMS > PAST ? 2 : 1, step, i;
    for (step = 0; step < steps; step++) {
        for (i = 0; i < f->n_parts; i++) {
            arguments a = part_of(f, &f->parts[i]);
            f->parts[i].items = N_DIMS > PAST ? (step ? a.kept : a.seq) : 1;
            f->parts[i].cost = COST;
            ((arguments *)f->calls)[i] = a;
        }
        llmc_run_parts(f, step, task[N_DIMS > PAST ? step : 2], sizeof(arguments));
    }
}

#ifdef SINGLE
#define BATCHES .single = "it was made for one"
#else
#define BATCHES .batches = 1
#endif

static size_t no_arena(const int64_t *d) {
    (void)d;
    return 0;
}

static void no_shape(const int64_t *d, int i, int64_t *shape) {
    (void)d, (void)i, (void)shape;
}

static size_t state_bytes(const int64_t *d, int state, int after) {
    (void)state;
    return N_DIMS > PAST ? (size_t)(d[PAST] + (after ? d[SEQ] : 0)) * 8 * WORDS_WIDE : 8;
}

static int64_t state_length(const int64_t *d, int state) {
    (void)state;
    return d[PAST] + d[SEQ];
}

static void step_cost(const int64_t *d, int step, double *flops, double *bytes) {
    (void)step;
    *flops = (double)d[KEPT] * WORDS;
    *bytes = (double)d[SEQ] * 8;
}

static double fma_loop(int64_t rounds) {
    volatile float x = 1;
    int64_t i;
    for (i = 0; i < rounds; i++) x = x * 0.5f + 0.5f;
    return 2.0 * (double)rounds;
}

static const int counted[] = {-1};
static const llmc_function functions[] = {
    {.name = "step", .n_inputs = sizeof inputs / sizeof *inputs, .n_outputs = 1, .n_steps = 2, .inputs = inputs, .outputs = outputs, .steps = steps,
     .counted = counted, .dims_used = dims_used, .state_use = use, .arena_bytes = no_arena, .input_shape = no_shape,
     .output_shape = no_shape, .state_bytes = state_bytes, .state_length = state_length, .step_cost = step_cost, .run = run,
     BATCHES}};
static const llmc_task kernels[] = {append, head, fold};
static const llmc_variant variants[] = {{"base", 0, kernels, fma_loop}};
#ifdef WORDS_WINDOW
static const int64_t own_windows[] = {WORDS_WINDOW};
#else
#define own_windows NULL
#endif
#ifdef ADAPTERS
static const char *const own_adapters[] = {"french", "german"};
#define N_ADAPTERS 2
#else
#define own_adapters NULL
#define N_ADAPTERS 0
#endif
static const uint32_t weights_crc32c[] = {WEIGHTS_CRC32C};

const llmc_program llmc_this_program = {
    .abi = LLMC_MODULE_ABI, .name = "words", .build_id = BUILD_ID, .weights_bytes = 64, .weights_crc32c = weights_crc32c,
    .n_dims = N_DIMS, .dims = dims, .n_functions = 1, .functions = functions, .n_states = 1, .states = states,
    .windows = own_windows, .n_adapters = N_ADAPTERS, .adapters = own_adapters, .n_variants = 1, .variants = variants,
    .scratch_bytes = 12, .call_bytes = sizeof(arguments),
};
