/*
 * check.c - before a call: types, values, outputs.
 */
#include <stdio.h>
#include <string.h>

#include "model.h"

llmc_status llmc_check_type(const llmc_tensor_spec *spec, const llmc_tensor *tensor, const char *kind,
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

llmc_status llmc_wrong_size(const char *kind, const llmc_tensor_spec *spec, int axis, int64_t size, int64_t expected,
                            llmc_error *error) {
    return llmc_fail(error, LLMC_ERROR_SHAPE, NULL, "axis %d of %s %s has size %lld, must have %lld", axis, kind,
                     spec->name, (long long)size, (long long)expected);
}

static int has_expression(const llmc_tensor_spec *spec) {
    int axis;
    for (axis = 0; axis < spec->rank; axis++)
        if (spec->dims[axis] == INT64_MIN) return 1;
    return 0;
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

int64_t llmc_kept(const llmc_tensor *mask, size_t all, size_t columns) {
    int64_t kept = 0;
    size_t i, j;
    for (i = 0; columns && i < all; i += columns) {
        int64_t tokens = 0; /* without any the whole row is kept, else the first place too */
        for (j = 0; j < columns; j++) tokens += element(mask, i + j) != 0;
        kept += tokens ? tokens + !element(mask, i) : (int64_t)columns;
    }
    return kept;
}

void llmc_count_dims(const llmc_program *program, const llmc_function *function, const llmc_tensor *inputs,
                     int64_t *sizes) {
    int c;
    for (c = 0; c < function->n_counted; c++) {
        const llmc_tensor *mask = inputs ? &inputs[function->counted[c]] : NULL;
        int64_t shape[LLMC_MAX_RANK];
        size_t all;
        llmc_input_shape(function, sizes, function->counted[c], shape);
        all = llmc_elements(function->inputs[function->counted[c]].rank, shape);
        sizes[program->n_dims + c] = mask && mask->data ? llmc_kept(mask, all, (size_t)shape[1])
                                                        : (int64_t)all; /* absent: all ones */
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
    if (!is_bool && !(spec->has_range && spec->dtype >= LLMC_I8 && spec->dtype <= LLMC_I64)) return LLMC_OK;
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
    llmc_status status = llmc_check_type(spec, output, "output", error);
    int64_t shape[LLMC_MAX_RANK];
    int axis;
    if (status != LLMC_OK) return status;
    if (!output->data) return llmc_fail(error, LLMC_ERROR_ARGUMENT, NULL, "output %s has no memory", spec->name);
    llmc_output_shape(function, sizes, i, shape);
    for (axis = 0; axis < spec->rank; axis++)
        if (output->shape[axis] != shape[axis])
            return llmc_wrong_size("output", spec, axis, output->shape[axis], shape[axis], error);
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
