/*
 * functions.c - the functions of a model: by name, and what sizes mean for them.
 */
#include <string.h>

#include "model.h"

static const char *name_of(const llmc_program *program, int i) {
    return program->functions[i].name;
}

int llmc_find_function(const llmc_model *model, const char *name, llmc_error *error) {
    int i;
    if (!model || !name) {
        llmc_fail(error, LLMC_ERROR_ARGUMENT, NULL, "model and name must not be NULL");
        return -1;
    }
    for (i = 0; i < model->program->n_functions; i++)
        if (strcmp(model->program->functions[i].name, name) == 0) return i;
    llmc_no_such("function", name, model->program, name_of, model->program->n_functions, error);
    return -1;
}

const llmc_function *llmc_function_of(const llmc_model *model, int number, llmc_error *error) {
    if (number >= 0 && number < model->program->n_functions) return &model->program->functions[number];
    llmc_fail(error, LLMC_ERROR_ARGUMENT, "llmc_find_function() tells numbers", "function is %d, must be within 0..%d",
              number, model->program->n_functions - 1);
    return NULL;
}

/* The sizes that a function needs, checked and with the counted ones behind them. */
static llmc_status take_sizes(const llmc_program *program, const llmc_function *function, const int64_t *asked,
                              int64_t *sizes, llmc_error *error) {
    int d;
    memset(sizes, 0, LLMC_MAX_DIMS * sizeof *sizes);
    for (d = 0; d < program->n_dims; d++) {
        const llmc_dim_info *dim = &program->dims[d];
        if (!function->dims_used[d]) continue;
        if (asked[d] < dim->low || asked[d] > dim->high)
            return llmc_fail(error, LLMC_ERROR_SHAPE, NULL, "%s is %lld, must be within %lld..%lld", dim->name,
                             (long long)asked[d], (long long)dim->low, (long long)dim->high);
        sizes[d] = asked[d];
    }
    llmc_count_dims(program, function, NULL, sizes);
    if (llmc_check_sizes(function, sizes, error) != LLMC_OK) return LLMC_ERROR_SHAPE;
    return llmc_check_growth(program, function, sizes, error);
}

static uint64_t bytes_of_states(const llmc_model *model, const llmc_function *function, const int64_t *sizes) {
    const llmc_program *program = model->program;
    uint64_t bytes = 0;
    int i;
    for (i = 0; i < program->n_states; i++) {
        int d = llmc_length_of_state(program, i);
        llmc_room room = llmc_room_of_state(program, function, sizes, i, d < 0 ? 0 : llmc_may_leave(program, i, sizes[d]));
        llmc_region none = {NULL, NULL, 0, NULL, NULL, llmc_is_appended(program, i)};
        if (function->state_use[i] == LLMC_STATE_UNUSED) continue;
        bytes += llmc_growth_of(model, &none, room.value, 0);
        if (function->state_use[i] == LLMC_STATE_REPLACED) bytes += llmc_growth_of(model, &none, room.next, 0);
    }
    return bytes;
}

llmc_status llmc_memory_needed(const llmc_model *model, int function, const int64_t *asked, llmc_memory *memory,
                               llmc_error *error) {
    const llmc_function *chosen;
    int64_t sizes[LLMC_MAX_DIMS];
    llmc_status status;
    size_t defaults = 0, parts;
    int i;
    if (!model || !asked || !memory)
        return llmc_fail(error, LLMC_ERROR_ARGUMENT, NULL, "model, sizes and memory must not be NULL");
    chosen = llmc_function_of(model, function, error);
    if (!chosen) return LLMC_ERROR_ARGUMENT;
    status = take_sizes(model->program, chosen, asked, sizes, error);
    if (status != LLMC_OK) return status;
    for (i = 0; i < chosen->n_inputs; i++)
        if (chosen->inputs[i].has_default) defaults += llmc_default_bytes(chosen, sizes, i);
    memory->weights = model->program->weights_bytes;
    parts = chosen->part_bytes ? chosen->part_bytes(sizes) : 0;
    memory->arena = model->device->run_bytes(model->own, chosen, sizes, parts) + (defaults ? llmc_held_for(defaults) : 0);
    memory->states = bytes_of_states(model, chosen, sizes);
    return LLMC_OK;
}

llmc_status llmc_input_shapes(const llmc_model *model, int function, const int64_t *asked, llmc_tensor *inputs,
                              llmc_error *error) {
    const llmc_function *chosen;
    int64_t sizes[LLMC_MAX_DIMS];
    llmc_status status;
    int i;
    if (!model || !asked || !inputs)
        return llmc_fail(error, LLMC_ERROR_ARGUMENT, NULL, "model, sizes and inputs must not be NULL");
    chosen = llmc_function_of(model, function, error);
    if (!chosen) return LLMC_ERROR_ARGUMENT;
    status = take_sizes(model->program, chosen, asked, sizes, error);
    for (i = 0; i < chosen->n_inputs && status == LLMC_OK; i++) {
        inputs[i].dtype = chosen->inputs[i].dtype;
        inputs[i].rank = chosen->inputs[i].rank;
        llmc_input_shape(chosen, sizes, i, inputs[i].shape);
    }
    return status;
}
