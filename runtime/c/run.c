/*
 * run.c - one run: check every tensor, bind the dims, fill what is absent, call the program.
 */
#define _GNU_SOURCE

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "model.h"

/* Sizes of the dims and which input each came from. */
typedef struct binding {
    int64_t sizes[LLMC_MAX_DIMS];
    const char *from[LLMC_MAX_DIMS]; /* NULL: not known yet */
} binding;

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

/* Take or compare the size of dim `d` as input `spec` has it. */
static llmc_status bind_dim(const llmc_program *program, binding *bound, int d, const llmc_tensor_spec *spec, int axis,
                            int64_t size, llmc_error *error) {
    const llmc_dim_info *dim = &program->dims[d];
    if (bound->from[d] && bound->sizes[d] != size)
        return llmc_fail(error, LLMC_ERROR_SHAPE, "inputs must agree", "%s is %lld in axis %d of input %s, but %lld in input %s",
                         dim->name, (long long)size, axis, spec->name, (long long)bound->sizes[d], bound->from[d]);
    if (size < dim->low || size > dim->high)
        return llmc_fail(error, LLMC_ERROR_SHAPE, "shorten or split the input, or compile with other bounds",
                         "%s is %lld in axis %d of input %s, must be within %lld..%lld", dim->name, (long long)size,
                         axis, spec->name, (long long)dim->low, (long long)dim->high);
    bound->from[d] = spec->name;
    bound->sizes[d] = size;
    return LLMC_OK;
}

static llmc_status bind_input(const llmc_program *program, binding *bound, const llmc_tensor_spec *spec,
                              const llmc_tensor *input, llmc_error *error) {
    llmc_status status = check_type(spec, input, "input", error);
    int axis;
    for (axis = 0; axis < spec->rank && status == LLMC_OK; axis++) {
        int64_t expected = spec->dims[axis], size = input->shape[axis];
        if (expected < 0)
            status = bind_dim(program, bound, (int)(-1 - expected), spec, axis, size, error);
        else if (size != expected)
            status = llmc_fail(error, LLMC_ERROR_SHAPE, NULL, "axis %d of input %s has size %lld, must have %lld", axis,
                               spec->name, (long long)size, (long long)expected);
    }
    return status;
}

static llmc_status bind_dims(const llmc_program *program, const llmc_tensor *inputs, binding *bound,
                             llmc_error *error) {
    llmc_status status = LLMC_OK;
    int i;
    memset(bound, 0, sizeof *bound);
    for (i = 0; i < program->n_inputs && status == LLMC_OK; i++) {
        const llmc_tensor_spec *spec = &program->inputs[i];
        if (inputs[i].data)
            status = bind_input(program, bound, spec, &inputs[i], error);
        else if (!spec->has_default)
            status = llmc_fail(error, LLMC_ERROR_MISSING, NULL, "input %s is missing", spec->name);
    }
    for (i = 0; i < program->n_dims && status == LLMC_OK; i++)
        if (!bound->from[i])
            status = llmc_fail(error, LLMC_ERROR_MISSING, NULL, "no input given tells the size of %s",
                               program->dims[i].name);
    return status;
}

#define TOO_MANY (SIZE_MAX / 8 / 1024) /* elements: bytes of as many inputs as one likes still fit in size_t */

/* Elements of an input whose axes are fixed or bound; at most TOO_MANY. */
static size_t count(const llmc_tensor_spec *spec, const int64_t *sizes) {
    size_t total = 1;
    int axis;
    for (axis = 0; axis < spec->rank; axis++) {
        int64_t d = spec->dims[axis];
        size_t size = (size_t)(d < 0 ? sizes[-1 - d] : d);
        if (size && total > TOO_MANY / size) return TOO_MANY;
        total *= size;
    }
    return total;
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

void llmc_count_dims(const llmc_program *program, const llmc_tensor *inputs, int64_t *sizes) {
    int c;
    for (c = 0; c < program->n_counted; c++) {
        const llmc_tensor *mask = &inputs[program->counted[c]];
        size_t all = count(&program->inputs[program->counted[c]], sizes), columns, i;
        int64_t kept = mask->data ? 0 : (int64_t)all; /* absent: all ones */
        for (i = 0, columns = mask->data ? (size_t)mask->shape[1] : 1; mask->data && i < all; i += columns) {
            size_t j;
            kept += columns > 0;
            for (j = 1; j < columns; j++) kept += element(mask, i + j) != 0;
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

static llmc_status check_values(const llmc_tensor_spec *spec, const llmc_tensor *tensor, const int64_t *sizes,
                                llmc_error *error) {
    int is_bool = spec->dtype == LLMC_BOOL;
    int64_t low = is_bool ? 0 : spec->low, high = is_bool ? 1 : spec->high;
    size_t i, n = count(spec, sizes);
    char at[200];
    if (!is_bool && !(spec->has_range && spec->dtype >= LLMC_I8)) return LLMC_OK;
    for (i = 0; i < n; i++) {
        int64_t value = element(tensor, i);
        if (value >= low && value <= high) continue;
        index_text(tensor, i, at, sizeof at);
        return llmc_fail(error, LLMC_ERROR_RANGE, NULL, "%s%s is %lld, must be within %lld..%lld", spec->name, at,
                         (long long)value, (long long)low, (long long)high);
    }
    return LLMC_OK;
}

/* Shape of output `i` for the sizes of the dims. */
static void output_shape(const llmc_program *program, const int64_t *sizes, int i, int64_t *shape) {
    const llmc_tensor_spec *spec = &program->outputs[i];
    int64_t computed[LLMC_MAX_RANK] = {0};
    int axis;
    program->output_shape(sizes, i, computed);
    for (axis = 0; axis < spec->rank; axis++) {
        int64_t d = spec->dims[axis];
        shape[axis] = d >= 0 ? d : d == INT64_MIN ? computed[axis] : sizes[-1 - d];
    }
}

static llmc_status check_output(const llmc_program *program, const int64_t *sizes, int i, const llmc_tensor *output,
                                llmc_error *error) {
    const llmc_tensor_spec *spec = &program->outputs[i];
    llmc_status status = check_type(spec, output, "output", error);
    int64_t shape[LLMC_MAX_RANK];
    int axis;
    if (status != LLMC_OK) return status;
    if (!output->data) return llmc_fail(error, LLMC_ERROR_ARGUMENT, NULL, "output %s has no memory", spec->name);
    output_shape(program, sizes, i, shape);
    for (axis = 0; axis < spec->rank; axis++)
        if (output->shape[axis] != shape[axis])
            return llmc_fail(error, LLMC_ERROR_SHAPE, NULL, "axis %d of output %s has size %lld, must have %lld", axis,
                             spec->name, (long long)output->shape[axis], (long long)shape[axis]);
    return LLMC_OK;
}

static llmc_status check_call(const llmc_program *program, const llmc_tensor *inputs, const llmc_tensor *outputs,
                              binding *bound, llmc_error *error) {
    llmc_status status = bind_dims(program, inputs, bound, error);
    int i;
    for (i = 0; i < program->n_inputs && status == LLMC_OK; i++)
        if (inputs[i].data) status = check_values(&program->inputs[i], &inputs[i], bound->sizes, error);
    if (status == LLMC_OK) llmc_count_dims(program, inputs, bound->sizes);
    for (i = 0; i < program->n_outputs && status == LLMC_OK; i++)
        status = check_output(program, bound->sizes, i, &outputs[i], error);
    return status;
}

/* Make `*memory` hold at least `bytes`; what it held is lost. */
static llmc_status grow(unsigned char **memory, size_t *held, size_t bytes, llmc_error *error) {
    void *more = NULL;
    if (bytes <= *held) return LLMC_OK;
    free(*memory); /* first, so that the peak is the larger of the two and not their sum */
    *memory = NULL;
    *held = 0;
    if (posix_memalign(&more, 64, bytes) != 0) return llmc_fail_memory(error, bytes);
    *memory = (unsigned char *)more;
    *held = bytes;
    return LLMC_OK;
}

static void fill(unsigned char *data, const llmc_tensor_spec *spec, size_t n) {
    double value = spec->default_value;
    size_t i;
    switch (spec->dtype) {
    case LLMC_F32: for (i = 0; i < n; i++) ((float *)(void *)data)[i] = (float)value; return;
    case LLMC_I32: for (i = 0; i < n; i++) ((int32_t *)(void *)data)[i] = (int32_t)value; return;
    case LLMC_I64: for (i = 0; i < n; i++) ((int64_t *)(void *)data)[i] = (int64_t)value; return;
    case LLMC_F16: for (i = 0; i < n; i++) ((uint16_t *)(void *)data)[i] = value != 0 ? 0x3c00 : 0; return; /* 1 */
    case LLMC_BF16: for (i = 0; i < n; i++) ((uint16_t *)(void *)data)[i] = value != 0 ? 0x3f80 : 0; return;
    default: memset(data, (int)value, n);
    }
}

/* Point model->inputs at the caller's tensors, and at filled ones for those that are absent. */
static llmc_status place_inputs(llmc_model *model, const llmc_tensor *inputs, const int64_t *sizes, llmc_error *error) {
    const llmc_program *program = model->program;
    size_t bytes = 0, used = 0;
    llmc_status status;
    int i;
    for (i = 0; i < program->n_inputs; i++) {
        const llmc_tensor_spec *spec = &program->inputs[i];
        size_t n = count(spec, sizes);
        if (inputs[i].data) continue;
        if (n == TOO_MANY) return llmc_fail_memory(error, SIZE_MAX);
        bytes += (n * llmc_dtype_size(spec->dtype) + 127) / 64 * 64; /* never empty */
    }
    status = grow(&model->defaults, &model->defaults_bytes, bytes, error);
    if (status != LLMC_OK) return status;
    for (i = 0; i < program->n_inputs; i++) {
        const llmc_tensor_spec *spec = &program->inputs[i];
        size_t n = count(spec, sizes);
        model->inputs[i] = inputs[i].data;
        if (inputs[i].data) continue;
        model->inputs[i] = model->defaults + used;
        fill(model->defaults + used, spec, n);
        used += (n * llmc_dtype_size(spec->dtype) + 127) / 64 * 64;
    }
    return LLMC_OK;
}

static llmc_status run_locked(llmc_model *model, const llmc_tensor *inputs, const llmc_tensor *outputs,
                              const int64_t *sizes, llmc_error *error) {
    const llmc_program *program = model->program;
    llmc_status status = place_inputs(model, inputs, sizes, error);
    llmc_frame frame;
    uint64_t mode;
    int i;
    if (status == LLMC_OK && program->device) return program->device->run(model, outputs, sizes, error);
    if (status == LLMC_OK) status = grow(&model->arena, &model->arena_bytes, program->arena_bytes(sizes) + 64, error);
    if (status != LLMC_OK) return status;
    for (i = 0; i < program->n_outputs; i++) model->outputs[i] = outputs[i].data;
    frame.dims = sizes;
    frame.weights = model->map + LLMC_WEIGHTS_HEADER;
    frame.arena = model->arena;
    frame.inputs = model->inputs;
    frame.outputs = model->outputs;
    frame.runtime = model;
    mode = llmc_float_mode(); /* the caller's may differ from the workers': the same bits on all threads */
    program->run(&frame, model->variant->kernels);
    llmc_set_float_mode(mode);
    return LLMC_OK;
}

llmc_status llmc_run(llmc_model *model, const llmc_tensor *inputs, const llmc_tensor *outputs, llmc_error *error) {
    binding bound;
    llmc_status status;
    if (!model || !inputs || !outputs)
        return llmc_fail(error, LLMC_ERROR_ARGUMENT, NULL, "model, inputs and outputs must not be NULL");
    if (model->owner != getpid())
        return llmc_fail(error, LLMC_ERROR_FORK, "open the model after fork()",
                         "the model was opened by the parent process, whose threads are not in this one");
    status = check_call(model->program, inputs, outputs, &bound, error);
    if (status != LLMC_OK) return status;
    llmc_lock(model);
    status = run_locked(model, inputs, outputs, bound.sizes, error);
    llmc_unlock(model);
    return status;
}

llmc_status llmc_output_shapes(const llmc_model *model, const llmc_tensor *inputs, llmc_tensor *outputs,
                               llmc_error *error) {
    binding bound;
    llmc_status status;
    int i;
    if (!model || !inputs || !outputs)
        return llmc_fail(error, LLMC_ERROR_ARGUMENT, NULL, "model, inputs and outputs must not be NULL");
    status = bind_dims(model->program, inputs, &bound, error);
    if (status == LLMC_OK) llmc_count_dims(model->program, inputs, bound.sizes);
    for (i = 0; i < model->program->n_outputs && status == LLMC_OK; i++) {
        outputs[i].dtype = model->program->outputs[i].dtype;
        outputs[i].rank = model->program->outputs[i].rank;
        output_shape(model->program, bound.sizes, i, outputs[i].shape);
    }
    return status;
}

void llmc_run_step(llmc_frame *frame, int step, llmc_task task, const void *arguments, int64_t items, int64_t cost) {
    llmc_model *model = (llmc_model *)frame->runtime;
    double begin;
    if (!model->step_seconds) {
        model->pool_can->run(model->pool, task, arguments, items, cost);
        return;
    }
    begin = llmc_now();
    model->pool_can->run(model->pool, task, arguments, items, cost);
    model->step_seconds[step] += llmc_now() - begin;
}
