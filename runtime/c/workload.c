/*
 * workload.c - a model with random valid inputs and memory for its outputs, ready to be timed.
 */
#include <stdlib.h>
#include <string.h>

#include "workload.h"

#define DEFAULT_SIZE 128 /* of a dim other than "batch" */

static size_t tensor_bytes(const llmc_tensor *tensor) {
    size_t total = llmc_dtype_size(tensor->dtype);
    int axis;
    for (axis = 0; axis < tensor->rank; axis++) {
        size_t size = (size_t)tensor->shape[axis];
        if (size && total > SIZE_MAX / 2 / size) return SIZE_MAX;
        total *= size;
    }
    return total;
}

static llmc_status allocate(llmc_tensor *tensor, llmc_error *error) {
    size_t bytes = tensor_bytes(tensor);
    tensor->data = bytes < SIZE_MAX - 64 ? calloc(1, bytes + 64) : NULL; /* never empty */
    return tensor->data ? LLMC_OK : llmc_fail_memory(error, bytes);
}

static int is_length(const llmc_info *info, int d) {
    int i;
    for (i = 0; i < info->n_states; i++) {
        const llmc_state_spec *spec = &info->states[i];
        if (spec->grows >= 0 && spec->dims[spec->grows] == -1 - d) return 1;
    }
    return 0;
}

/* A size for every dim: the one asked for, or the default nearest to its bounds. */
static llmc_status choose_sizes(const llmc_info *info, const int64_t *asked, int64_t *sizes, llmc_error *error) {
    int i;
    for (i = 0; i < info->n_dims; i++) {
        const llmc_dim_info *dim = &info->dims[i];
        int64_t usual = is_length(info, i) ? 0 : strcmp(dim->name, "batch") == 0 ? 1 : DEFAULT_SIZE;
        if (asked && asked[i]) {
            sizes[i] = asked[i];
            if (asked[i] < dim->low || asked[i] > dim->high)
                return llmc_fail(error, LLMC_ERROR_SHAPE, NULL, "%s is %lld, must be within %lld..%lld", dim->name,
                                 (long long)asked[i], (long long)dim->low, (long long)dim->high);
        } else {
            sizes[i] = usual < dim->low ? dim->low : usual > dim->high ? dim->high : usual;
        }
    }
    return LLMC_OK;
}

static void set_integer(void *data, int dtype, size_t i, int64_t value) {
    switch (dtype) {
    case LLMC_I32: ((int32_t *)data)[i] = (int32_t)value; return;
    case LLMC_I64: ((int64_t *)data)[i] = value; return;
    default: ((int8_t *)data)[i] = (int8_t)value;
    }
}

/* Integers over their range, or 0 where they have none; floats over -1..1; bools 1. */
static void fill_random(const llmc_tensor_spec *spec, llmc_tensor *tensor, uint64_t *state) {
    size_t n = tensor_bytes(tensor) / llmc_dtype_size(spec->dtype), i;
    uint64_t span = spec->has_range ? (uint64_t)spec->high - (uint64_t)spec->low + 1 : 1;
    int64_t low = spec->has_range ? spec->low : spec->dtype == LLMC_BOOL;
    for (i = 0; i < n; i++) {
        uint64_t bits = llmc_random(state);
        if (spec->dtype == LLMC_F32)
            ((float *)tensor->data)[i] = (float)(bits >> 40) / 8388608.0f - 1.0f;
        else if (spec->dtype == LLMC_F64)
            ((double *)tensor->data)[i] = (double)(bits >> 40) / 8388608.0 - 1.0;
        else if (spec->dtype == LLMC_F16) /* sign, an exponent below 0 (bias 15), 10 bits: magnitudes 1/16 to 1 */
            ((uint16_t *)tensor->data)[i] = (uint16_t)((bits & 0x8fff) | 0x2c00);
        else if (spec->dtype == LLMC_BF16) /* likewise with bias 127 and 7 bits: magnitudes 1/2 to 1 */
            ((uint16_t *)tensor->data)[i] = (uint16_t)((bits & 0x807f) | 0x3f00);
        else
            set_integer(tensor->data, spec->dtype, i, (int64_t)((uint64_t)low + (span ? bits % span : bits)));
    }
}

/* Whether an input is a mask [rows, columns] of tokens: whole numbers, 1 where nothing is said. */
static int is_mask(const llmc_tensor_spec *spec) {
    return spec->has_default && spec->default_value == 1 && spec->rank == 2 && spec->dtype >= LLMC_I8 &&
           spec->dtype <= LLMC_BOOL;
}

/* `shortest` to all columns of each row are 1. */
static void fill_mask(llmc_tensor *tensor, int64_t shortest, uint64_t *state) {
    int64_t columns = tensor->shape[1], low = shortest < columns ? shortest : columns, row, column;
    for (row = 0; row < tensor->shape[0]; row++) {
        int64_t length = low + (int64_t)(llmc_random(state) % (uint64_t)(columns - low + 1));
        for (column = 0; column < length; column++)
            set_integer(tensor->data, tensor->dtype, (size_t)(row * columns + column), 1);
    }
}

static llmc_status make_inputs(llmc_workload *w, const llmc_benchmark_options *options, llmc_error *error) {
    uint64_t state = options->seed * 2 + 0x9e3779b97f4a7c15ull;
    llmc_status status = w->api->input_shapes(w->model, w->function, w->sizes, w->inputs, error);
    int i, masked = options->shortest == 0;
    if (!state) state = 1;
    for (i = 0; i < w->info->n_inputs && status == LLMC_OK; i++) {
        const llmc_tensor_spec *spec = &w->info->inputs[i];
        llmc_tensor *tensor = &w->inputs[i];
        int mask = options->shortest && is_mask(spec);
        if (spec->has_default && !mask) continue; /* absent: a mask is then all ones */
        status = allocate(tensor, error);
        if (status == LLMC_OK && !mask) fill_random(spec, tensor, &state);
        if (status == LLMC_OK && mask) fill_mask(tensor, options->shortest, &state);
        masked |= mask;
    }
    if (status == LLMC_OK && !masked)
        return llmc_fail(error, LLMC_ERROR_ARGUMENT, NULL, "the model has no mask that could make rows shorter");
    return status;
}

static llmc_status make_outputs(llmc_workload *w, llmc_error *error) {
    llmc_status status = w->api->session_output_shapes(w->session, w->function, w->inputs, w->outputs, error);
    int i;
    for (i = 0; i < w->info->n_outputs && status == LLMC_OK; i++) status = allocate(&w->outputs[i], error);
    return status;
}

static llmc_status make_session(llmc_workload *w, const llmc_info *info, llmc_error *error) {
    llmc_status status = w->api->session_open(w->model, NULL, &w->session, error);
    return status == LLMC_OK && info->n_states ? w->api->session_resize(w->session, w->sizes, error) : status;
}

llmc_status llmc_workload_open(llmc_workload *w, const llmc_api *api, llmc_model *model, int function,
                               const int64_t *sizes, const llmc_benchmark_options *options, llmc_error *error) {
    const llmc_info *info = api->describe(model);
    llmc_status status;
    memset(w, 0, sizeof *w);
    if (function < 0 || function >= info->n_functions)
        return llmc_fail(error, LLMC_ERROR_ARGUMENT, "llmc_find_function() tells numbers",
                         "function is %d, must be within 0..%d", function, info->n_functions - 1);
    w->api = api;
    w->model = model;
    w->function = function;
    w->info = &info->functions[function];
    status = choose_sizes(info, sizes, w->sizes, error);
    if (status != LLMC_OK) return status;
    w->inputs = (llmc_tensor *)calloc((size_t)w->info->n_inputs + 1, sizeof *w->inputs);
    w->outputs = (llmc_tensor *)calloc((size_t)w->info->n_outputs + 1, sizeof *w->outputs);
    if (!w->inputs || !w->outputs) status = llmc_fail_memory(error, sizeof *w->inputs);
    if (status == LLMC_OK) status = make_session(w, info, error);
    if (status == LLMC_OK) status = make_inputs(w, options, error);
    if (status == LLMC_OK) status = make_outputs(w, error);
    if (status != LLMC_OK) llmc_workload_close(w);
    return status;
}

void llmc_workload_close(llmc_workload *w) {
    int i;
    for (i = 0; w->inputs && i < w->info->n_inputs; i++) free(w->inputs[i].data);
    for (i = 0; w->outputs && i < w->info->n_outputs; i++) free(w->outputs[i].data);
    if (w->session) w->api->session_close(w->session);
    free(w->inputs);
    free(w->outputs);
    memset(w, 0, sizeof *w);
}

llmc_status llmc_workload_time(llmc_workload *w, double *seconds, llmc_error *error) {
    const llmc_run_options same = {0, 1}; /* every run begins where the first one does */
    double begin = llmc_now();
    llmc_status status = w->api->session_run(w->session, w->function, w->inputs, w->outputs, &same, error);
    *seconds = llmc_now() - begin;
    return status;
}
