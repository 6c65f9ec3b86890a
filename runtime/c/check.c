/*
 * check.c - before a call: sizes of the dims from inputs and session, types, values, outputs.
 */
#include <stdio.h>
#include <string.h>

#include "model.h"

static const char SESSION[] = "the session"; /* in llmc_binding.from */

static llmc_status check_type(const llmc_tensor_spec *spec, const llmc_tensor *tensor, const char *kind,
                              llmc_error *error) {
    size_t size = llmc_dtype_size(spec->dtype);
    if (tensor->dtype != spec->dtype)
        return llmc_fail(error, LLMC_ERROR_DTYPE, NULL, "%s %s is %s, must be %s", kind, spec->name,
                         llmc_dtype_name(tensor->dtype), llmc_dtype_name(spec->dtype));
    if (tensor->rank != spec->rank)
        return llmc_fail(error, LLMC_ERROR_SHAPE, NULL, "%s %s has %d axes, must have %d", kind, spec->name,
                         tensor->rank, spec->rank);
    if (size && (uintptr_t)tensor->data % size)
        return llmc_fail(error, LLMC_ERROR_ARGUMENT, NULL, "%s %s is not aligned to %d bytes", kind, spec->name,
                         (int)size);
    return LLMC_OK;
}

static llmc_status wrong_size(const char *kind, const llmc_tensor_spec *spec, int axis, int64_t size, int64_t expected,
                              llmc_error *error) {
    return llmc_fail(error, LLMC_ERROR_SHAPE, NULL, "axis %d of %s %s has size %lld, must have %lld", axis, kind,
                     spec->name, (long long)size, (long long)expected);
}

static llmc_status disagree(const llmc_dim_info *dim, const llmc_binding *bound, int d, const llmc_tensor_spec *spec,
                            int axis, int64_t size, llmc_error *error) {
    if (bound->from[d] == SESSION)
        return llmc_fail(error, LLMC_ERROR_STATE, "reset the session to begin with other sizes, or use another",
                         "%s is %lld in axis %d of input %s, but %lld in the session", dim->name, (long long)size, axis,
                         spec->name, (long long)bound->sizes[d]);
    return llmc_fail(error, LLMC_ERROR_SHAPE, "inputs must agree", "%s is %lld in axis %d of input %s, but %lld in input %s",
                     dim->name, (long long)size, axis, spec->name, (long long)bound->sizes[d], bound->from[d]);
}

/* Take or compare the size of dim `d` as input `spec` has it. */
static llmc_status bind_dim(const llmc_program *program, llmc_binding *bound, int d, const llmc_tensor_spec *spec,
                            int axis, int64_t size, llmc_error *error) {
    const llmc_dim_info *dim = &program->dims[d];
    if (bound->from[d] && bound->sizes[d] != size) return disagree(dim, bound, d, spec, axis, size, error);
    if (size < dim->low || size > dim->high)
        return llmc_fail(error, LLMC_ERROR_SHAPE, "shorten or split the input, or compile with other bounds",
                         "%s is %lld in axis %d of input %s, must be within %lld..%lld", dim->name, (long long)size,
                         axis, spec->name, (long long)dim->low, (long long)dim->high);
    if (!bound->from[d]) bound->from[d] = spec->name;
    bound->sizes[d] = size;
    return LLMC_OK;
}

static llmc_status bind_input(const llmc_program *program, llmc_binding *bound, const llmc_tensor_spec *spec,
                              const llmc_tensor *input, llmc_error *error) {
    llmc_status status = check_type(spec, input, "input", error);
    int axis;
    for (axis = 0; axis < spec->rank && status == LLMC_OK; axis++) {
        int64_t expected = spec->dims[axis], size = input->shape[axis];
        if (expected == INT64_MIN) continue; /* compared when all dims are known */
        if (expected < 0)
            status = bind_dim(program, bound, (int)(-1 - expected), spec, axis, size, error);
        else if (size != expected)
            status = wrong_size("input", spec, axis, size, expected, error);
    }
    return status;
}

/* The sizes that the states a function uses have in this session. */
static void bind_states(const llmc_session *session, const llmc_function *function, llmc_binding *bound) {
    const llmc_program *program = session->model->program;
    int i, axis;
    for (i = 0; i < program->n_states; i++) {
        const llmc_state_spec *spec = &program->states[i];
        if (function->state_use[i] == LLMC_STATE_UNUSED) continue;
        for (axis = 0; axis < spec->rank; axis++) {
            int64_t d = -1 - spec->dims[axis];
            if (spec->dims[axis] >= 0 || spec->dims[axis] == INT64_MIN || session->sizes[d] < 0) continue;
            bound->sizes[d] = session->sizes[d];
            bound->from[d] = SESSION;
        }
    }
}

static int has_expression(const llmc_tensor_spec *spec) {
    int axis;
    for (axis = 0; axis < spec->rank; axis++)
        if (spec->dims[axis] == INT64_MIN) return 1;
    return 0;
}

static llmc_status check_expressions(const llmc_function *function, const llmc_tensor *inputs, const int64_t *sizes,
                                     llmc_error *error) {
    int i, axis;
    for (i = 0; i < function->n_inputs; i++) {
        int64_t shape[LLMC_MAX_RANK];
        if (!inputs[i].data || !has_expression(&function->inputs[i])) continue;
        llmc_input_shape(function, sizes, i, shape);
        for (axis = 0; axis < function->inputs[i].rank; axis++)
            if (inputs[i].shape[axis] != shape[axis])
                return wrong_size("input", &function->inputs[i], axis, inputs[i].shape[axis], shape[axis], error);
    }
    return LLMC_OK;
}

llmc_status llmc_bind(const llmc_session *session, const llmc_function *function, const llmc_tensor *inputs,
                      llmc_binding *bound, llmc_error *error) {
    const llmc_program *program = session->model->program;
    llmc_status status = LLMC_OK;
    int i;
    memset(bound, 0, sizeof *bound);
    bind_states(session, function, bound);
    for (i = 0; i < function->n_inputs && status == LLMC_OK; i++) {
        const llmc_tensor_spec *spec = &function->inputs[i];
        if (inputs[i].data)
            status = bind_input(program, bound, spec, &inputs[i], error);
        else if (!spec->has_default)
            status = llmc_fail(error, LLMC_ERROR_MISSING, NULL, "input %s is missing", spec->name);
    }
    for (i = 0; i < program->n_dims && status == LLMC_OK; i++)
        if (!bound->from[i] && function->dims_used[i])
            status = llmc_fail(error, LLMC_ERROR_MISSING, NULL, "no input given tells the size of %s",
                               program->dims[i].name);
    return status == LLMC_OK ? check_expressions(function, inputs, bound->sizes, error) : status;
}

llmc_status llmc_check_sizes(const llmc_function *function, const int64_t *sizes, llmc_error *error) {
    int64_t found[2];
    int i = function->misfit ? function->misfit(sizes, found) : -1;
    if (i < 0) return LLMC_OK;
    return llmc_fail(error, LLMC_ERROR_SHAPE, "give inputs whose sizes fit; a state that grows holds nothing at first",
                     "%s%lld%s%lld", function->constraints[i].head, (long long)found[0], function->constraints[i].middle,
                     (long long)found[1]);
}

size_t llmc_elements(int rank, const int64_t *shape) {
    size_t total = 1;
    int axis;
    for (axis = 0; axis < rank; axis++) {
        size_t size = (size_t)shape[axis];
        if (size && total > LLMC_TOO_MANY / size) return LLMC_TOO_MANY;
        total *= size;
    }
    return total;
}

/* The axes of `spec`, those that are expressions as `shape` has them already. */
static void fill_shape(const llmc_tensor_spec *spec, const int64_t *sizes, int64_t *shape) {
    int axis;
    for (axis = 0; axis < spec->rank; axis++) {
        int64_t d = spec->dims[axis];
        if (d != INT64_MIN) shape[axis] = d >= 0 ? d : sizes[-1 - d];
    }
}

void llmc_input_shape(const llmc_function *function, const int64_t *sizes, int i, int64_t *shape) {
    if (has_expression(&function->inputs[i])) function->input_shape(sizes, i, shape);
    fill_shape(&function->inputs[i], sizes, shape);
}

void llmc_output_shape(const llmc_function *function, const int64_t *sizes, int i, int64_t *shape) {
    if (has_expression(&function->outputs[i])) function->output_shape(sizes, i, shape);
    fill_shape(&function->outputs[i], sizes, shape);
}

static int64_t element(const llmc_tensor *tensor, size_t i) {
    switch (tensor->dtype) {
    case LLMC_I8: return ((const int8_t *)tensor->data)[i];
    case LLMC_U8:
    case LLMC_BOOL: return ((const uint8_t *)tensor->data)[i];
    case LLMC_I32: return ((const int32_t *)tensor->data)[i];
    default: return ((const int64_t *)tensor->data)[i];
    }
}

void llmc_count_dims(const llmc_program *program, const llmc_function *function, const llmc_tensor *inputs,
                     int64_t *sizes) {
    int c;
    for (c = 0; c < function->n_counted; c++) {
        const llmc_tensor *mask = inputs ? &inputs[function->counted[c]] : NULL;
        int64_t shape[LLMC_MAX_RANK], kept;
        size_t all, columns, i, j;
        llmc_input_shape(function, sizes, function->counted[c], shape);
        all = llmc_elements(function->inputs[function->counted[c]].rank, shape);
        columns = (size_t)shape[1];
        kept = mask && mask->data ? 0 : (int64_t)all; /* absent: all ones */
        for (i = 0; mask && mask->data && columns && i < all; i += columns) {
            int64_t tokens = 0; /* without any the whole row is kept, else the first place too */
            for (j = 0; j < columns; j++) tokens += element(mask, i + j) != 0;
            kept += tokens ? tokens + !element(mask, i) : (int64_t)columns;
        }
        sizes[program->n_dims + c] = kept;
    }
}

/* "[3,17]" for element `flat`; an empty text for a scalar. */
static void index_text(const llmc_tensor *tensor, size_t flat, char *text, size_t bytes) {
    size_t at[LLMC_MAX_RANK], used = 0;
    int axis;
    text[0] = 0;
    for (axis = tensor->rank - 1; axis >= 0; axis--) {
        at[axis] = flat % (size_t)tensor->shape[axis];
        flat /= (size_t)tensor->shape[axis];
    }
    for (axis = 0; axis < tensor->rank && used < bytes; axis++) {
        const char *before = axis ? "," : "[", *after = axis == tensor->rank - 1 ? "]" : "";
        int n = snprintf(text + used, bytes - used, "%s%llu%s", before, (unsigned long long)at[axis], after);
        used += n > 0 ? (size_t)n : 0;
    }
}

static llmc_status check_values(const llmc_tensor_spec *spec, const llmc_tensor *tensor, llmc_error *error) {
    int is_bool = spec->dtype == LLMC_BOOL;
    int64_t low = is_bool ? 0 : spec->low, high = is_bool ? 1 : spec->high;
    size_t i, n;
    char at[200];
    if (!is_bool && !(spec->has_range && spec->dtype >= LLMC_I8)) return LLMC_OK;
    n = llmc_elements(spec->rank, tensor->shape);
    for (i = 0; i < n; i++) {
        int64_t value = element(tensor, i);
        if (value >= low && value <= high) continue;
        index_text(tensor, i, at, sizeof at);
        return llmc_fail(error, LLMC_ERROR_RANGE, NULL, "%s%s is %lld, must be within %lld..%lld", spec->name, at,
                         (long long)value, (long long)low, (long long)high);
    }
    return LLMC_OK;
}

llmc_status llmc_check_values(const llmc_function *function, const llmc_tensor *inputs, llmc_error *error) {
    llmc_status status = LLMC_OK;
    int i;
    for (i = 0; i < function->n_inputs && status == LLMC_OK; i++)
        if (inputs[i].data) status = check_values(&function->inputs[i], &inputs[i], error);
    return status;
}

static llmc_status check_output(const llmc_function *function, const int64_t *sizes, int i, const llmc_tensor *output,
                                llmc_error *error) {
    const llmc_tensor_spec *spec = &function->outputs[i];
    llmc_status status = check_type(spec, output, "output", error);
    int64_t shape[LLMC_MAX_RANK];
    int axis;
    if (status != LLMC_OK) return status;
    if (!output->data) return llmc_fail(error, LLMC_ERROR_ARGUMENT, NULL, "output %s has no memory", spec->name);
    llmc_output_shape(function, sizes, i, shape);
    for (axis = 0; axis < spec->rank; axis++)
        if (output->shape[axis] != shape[axis])
            return wrong_size("output", spec, axis, output->shape[axis], shape[axis], error);
    return LLMC_OK;
}

llmc_status llmc_check_outputs(const llmc_function *function, const llmc_tensor *outputs, const int64_t *sizes,
                               llmc_error *error) {
    llmc_status status = LLMC_OK;
    int i;
    for (i = 0; i < function->n_outputs && status == LLMC_OK; i++)
        status = check_output(function, sizes, i, &outputs[i], error);
    return status;
}
