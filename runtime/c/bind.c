/*
 * bind.c - before a call: sizes of the dims, from inputs and sessions.
 */
#include <string.h>

#include "model.h"

static const char SESSION[] = "the session", SESSIONS[] = "all sessions"; /* in llmc_binding.from */

static llmc_status disagree(const llmc_dim_info *dim, const llmc_binding *bound, int d, const llmc_tensor_spec *spec,
                            int axis, int64_t size, llmc_error *error) {
    if (bound->from[d] == SESSION)
        return llmc_fail(error, LLMC_ERROR_STATE, "reset the session to begin with other sizes, or use another",
                         "%s is %lld in axis %d of input %s, but %lld in the session", dim->name, (long long)size, axis,
                         spec->name, (long long)bound->sizes[d]);
    if (bound->from[d] == SESSIONS)
        return llmc_fail(error, LLMC_ERROR_SHAPE, "inputs have the rows of all sessions, one after the other",
                         "%s is %lld in axis %d of input %s, but the sessions have %lld together", dim->name,
                         (long long)size, axis, spec->name, (long long)bound->sizes[d]);
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
    llmc_status status = llmc_check_type(spec, input, "input", error);
    int axis;
    for (axis = 0; axis < spec->rank && status == LLMC_OK; axis++) {
        int64_t expected = spec->dims[axis], size = input->shape[axis];
        if (expected == INT64_MIN) continue; /* compared when all dims are known */
        if (expected < 0)
            status = bind_dim(program, bound, (int)(-1 - expected), spec, axis, size, error);
        else if (size != expected)
            status = llmc_wrong_size("input", spec, axis, size, expected, error);
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

/* A function that sets state `i` and keeps its shape, or NULL. */
static const llmc_function *setter_of(const llmc_program *program, int i) {
    int f;
    for (f = 0; f < program->n_functions && program->states[i].grows < 0; f++)
        if (program->functions[f].state_use[i] == LLMC_STATE_REPLACED) return &program->functions[f];
    return NULL;
}

/* What a function only reads, as what an encoder has made of a source, another has to set first. */
static llmc_status check_set(const llmc_session *session, const llmc_function *function, llmc_error *error) {
    const llmc_program *program = session->model->program;
    int i;
    for (i = 0; i < program->n_states; i++) {
        const llmc_function *setter = session->begun[i] ? NULL : setter_of(program, i);
        if (function->state_use[i] == LLMC_STATE_READ && setter)
            return llmc_fail(error, LLMC_ERROR_STATE, "call that one first", "function %s reads state %s, which function %s sets",
                             function->name, program->states[i].name, setter->name);
    }
    return LLMC_OK;
}

static llmc_status check_expressions(const llmc_function *function, const llmc_tensor *inputs, const int64_t *sizes,
                                     llmc_error *error) {
    int i, axis;
    for (i = 0; i < function->n_inputs; i++) {
        int64_t shape[LLMC_MAX_RANK];
        if (!inputs[i].data) continue;
        llmc_input_shape(function, sizes, i, shape);
        for (axis = 0; axis < function->inputs[i].rank; axis++)
            if (inputs[i].shape[axis] != shape[axis])
                return llmc_wrong_size("input", &function->inputs[i], axis, inputs[i].shape[axis], shape[axis], error);
    }
    return LLMC_OK;
}

static llmc_status bind_inputs(const llmc_program *program, const llmc_function *function, const llmc_tensor *inputs,
                               llmc_binding *bound, llmc_error *error) {
    llmc_status status = LLMC_OK;
    int i;
    for (i = 0; i < function->n_inputs && status == LLMC_OK; i++) {
        const llmc_tensor_spec *spec = &function->inputs[i];
        if (inputs[i].data)
            status = bind_input(program, bound, spec, &inputs[i], error);
        else if (!spec->has_default)
            status = llmc_fail(error, LLMC_ERROR_MISSING, NULL, "input %s is missing", spec->name);
    }
    return status;
}

static llmc_status check_bound(const llmc_program *program, const llmc_function *function, const llmc_binding *bound,
                               llmc_error *error) {
    int d;
    for (d = 0; d < program->n_dims; d++)
        if (!bound->from[d] && function->dims_used[d])
            return llmc_fail(error, LLMC_ERROR_MISSING, NULL, "no input given tells the size of %s", program->dims[d].name);
    return LLMC_OK;
}

llmc_status llmc_bind_sizes(const llmc_session *session, const llmc_function *function, const int64_t *asked,
                            llmc_binding *bound, llmc_error *error) {
    const llmc_program *program = session->model->program;
    int d;
    memset(bound, 0, sizeof *bound);
    bind_states(session, function, bound);
    for (d = 0; d < program->n_dims; d++) {
        const llmc_dim_info *dim = &program->dims[d];
        if (bound->from[d] || !function->dims_used[d] || llmc_dim_of_states(program, d)) continue;
        if (asked[d] < dim->low || asked[d] > dim->high)
            return llmc_fail(error, LLMC_ERROR_SHAPE, "split the input, or compile with other bounds",
                             "%s is %lld, must be within %lld..%lld", dim->name, (long long)asked[d],
                             (long long)dim->low, (long long)dim->high);
        bound->sizes[d] = asked[d];
        bound->from[d] = SESSIONS;
    }
    if (check_set(session, function, error) != LLMC_OK) return LLMC_ERROR_STATE;
    return check_bound(program, function, bound, error);
}

llmc_status llmc_bind_together(const llmc_program *program, const llmc_function *function, const llmc_tensor *inputs,
                               const int64_t *together, llmc_error *error) {
    llmc_binding bound;
    int d;
    memset(&bound, 0, sizeof bound);
    for (d = 0; d < program->n_dims; d++) {
        if (llmc_dim_of_states(program, d) || !function->dims_used[d]) continue;
        if (together[d] > program->dims[d].high)
            return llmc_fail(error, LLMC_ERROR_SHAPE, "run fewer sessions or tokens at once, or compile with other bounds",
                             "%s is %lld for all sessions together, must be within %lld..%lld", program->dims[d].name,
                             (long long)together[d], (long long)program->dims[d].low, (long long)program->dims[d].high);
        bound.sizes[d] = together[d];
        bound.from[d] = SESSIONS;
    }
    return bind_inputs(program, function, inputs, &bound, error);
}

llmc_status llmc_bind(const llmc_session *session, const llmc_function *function, const llmc_tensor *inputs,
                      llmc_binding *bound, llmc_error *error) {
    const llmc_program *program = session->model->program;
    llmc_status status;
    memset(bound, 0, sizeof *bound);
    bind_states(session, function, bound);
    status = check_set(session, function, error);
    if (status == LLMC_OK) status = bind_inputs(program, function, inputs, bound, error);
    if (status == LLMC_OK) status = check_bound(program, function, bound, error);
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
