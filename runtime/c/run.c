/*
 * run.c - one run of one function in one session: check, fill what is absent, call the device, keep what came of it.
 */
#include <string.h>

#include "model.h"

static size_t padded(size_t bytes) {
    return (bytes + 127) / 64 * 64; /* never empty */
}

size_t llmc_default_bytes(const llmc_function *function, const int64_t *sizes, int input) {
    const llmc_tensor_spec *spec = &function->inputs[input];
    int64_t shape[LLMC_MAX_RANK];
    llmc_input_shape(function, sizes, input, shape);
    return padded(llmc_elements(spec->rank, shape) * llmc_dtype_size(spec->dtype));
}

static void fill(unsigned char *data, const llmc_tensor_spec *spec, size_t n) {
    double value = spec->default_value;
    size_t i;
    switch (spec->dtype) {
    case LLMC_F32: for (i = 0; i < n; i++) ((float *)(void *)data)[i] = (float)value; return;
    case LLMC_F64: for (i = 0; i < n; i++) ((double *)(void *)data)[i] = value; return;
    case LLMC_I32: for (i = 0; i < n; i++) ((int32_t *)(void *)data)[i] = (int32_t)value; return;
    case LLMC_I64: for (i = 0; i < n; i++) ((int64_t *)(void *)data)[i] = (int64_t)value; return;
    case LLMC_F16: for (i = 0; i < n; i++) ((uint16_t *)(void *)data)[i] = value != 0 ? 0x3c00 : 0; return; /* 1 */
    case LLMC_BF16: for (i = 0; i < n; i++) ((uint16_t *)(void *)data)[i] = value != 0 ? 0x3f80 : 0; return;
    default: memset(data, (int)value, n);
    }
}

static size_t bytes_of_defaults(const llmc_function *function, const llmc_tensor *inputs, const int64_t *sizes) {
    size_t bytes = 0;
    int i;
    for (i = 0; i < function->n_inputs; i++)
        if (!inputs[i].data) bytes += llmc_default_bytes(function, sizes, i);
    return bytes;
}

/* What the session that leads a run of these sizes needs besides states. */
static size_t growth_of_run(const llmc_session *leader, const llmc_function *function, const llmc_tensor *inputs,
                            const int64_t *sizes, int generous) {
    size_t defaults = bytes_of_defaults(function, inputs, sizes);
    llmc_region run = {NULL, NULL, 0, NULL, NULL, 0}; /* all that the device needs, as if in one piece */
    run.bytes = (size_t)(leader->held - llmc_bytes_of_states(leader)) - leader->defaults.bytes;
    return (defaults ? llmc_growth_of(leader->model, &leader->defaults, defaults, generous) : 0) +
           llmc_growth_of(leader->model, &run, leader->model->device->run_bytes(leader, function, sizes, leader->part_bytes) - 64, generous);
}

static llmc_status check_member(const llmc_session *leader, const llmc_member *member, const llmc_function *function,
                                const llmc_tensor *inputs, const int64_t *sizes, int generous, llmc_error *error) {
    size_t bytes = llmc_growth_of_states(member->session, function, member->sizes, generous);
    size_t copies = llmc_copies_of_states(member->session, function, member->sizes);
    if (member->session == leader) bytes += growth_of_run(leader, function, inputs, sizes, generous);
    return llmc_check_room(member->session, bytes, copies, error);
}

/* Where memory is bounded, a call that it does not suffice for is refused before any of it is taken. */
static llmc_status check_memory(const llmc_session *leader, const llmc_member *member, const llmc_function *function,
                                const llmc_tensor *inputs, const int64_t *sizes, llmc_error *error) {
    llmc_session *session = member->session;
    session->generous = session->model->program->n_states > 0;
    if (!session->max_memory && !session->model->max_memory) return LLMC_OK;
    if (session->generous && check_member(leader, member, function, inputs, sizes, 1, NULL) == LLMC_OK) return LLMC_OK;
    session->generous = 0;
    return check_member(leader, member, function, inputs, sizes, 0, error);
}

/* Point session->inputs at the caller's tensors, and at filled ones for those that are absent. */
static llmc_status place_inputs(llmc_session *session, const llmc_function *function, const llmc_member *members,
                                int n_members, const llmc_tensor *inputs, const int64_t *sizes, llmc_error *error) {
    size_t bytes = bytes_of_defaults(function, inputs, sizes), used = 0;
    llmc_status status;
    int i;
    status = bytes ? llmc_reserve(session, &llmc_host, &session->defaults, bytes, 0, error) : LLMC_OK;
    if (status != LLMC_OK) return status;
    for (i = 0; i < function->n_inputs; i++) {
        int64_t shape[LLMC_MAX_RANK];
        size_t n;
        session->inputs[i] = inputs[i].data;
        if (inputs[i].data) continue;
        session->inputs[i] = session->defaults.at + used;
        llmc_input_shape(function, sizes, i, shape);
        n = llmc_elements(function->inputs[i].rank, shape);
        if (llmc_says_adapter(session->model->program, &function->inputs[i]))
            llmc_fill_adapters((int64_t *)(void *)(session->defaults.at + used), function, i, members, n_members);
        else
            fill(session->defaults.at + used, &function->inputs[i], n);
        used += padded(n * llmc_dtype_size(function->inputs[i].dtype));
    }
    return LLMC_OK;
}

static llmc_status check_call(const llmc_session *session, const llmc_function *function, const llmc_tensor *inputs,
                              const llmc_tensor *outputs, llmc_binding *bound, llmc_error *error) {
    const llmc_program *program = session->model->program;
    llmc_status status = llmc_bind(session, function, inputs, bound, error);
    if (status == LLMC_OK) status = llmc_check_values(function, inputs, error);
    if (status == LLMC_OK) llmc_count_dims(program, function, inputs, bound->sizes);
    if (status == LLMC_OK) status = llmc_check_sizes(function, bound->sizes, error);
    if (status == LLMC_OK) status = llmc_check_growth(program, function, bound->sizes, error);
    return status == LLMC_OK ? llmc_check_outputs(function, outputs, bound->sizes, error) : status;
}

static llmc_status given_up(int why, double timeout, llmc_error *error) {
    if (why == LLMC_ERROR_CANCELLED)
        return llmc_fail(error, LLMC_ERROR_CANCELLED, NULL, "the run was cancelled");
    return llmc_fail(error, LLMC_ERROR_DEADLINE, "allow more time, or use smaller inputs",
                     "the run took longer than its timeout of %g s", timeout);
}

/* All members' memory is found before anything runs. */
static llmc_status run_in_turn(llmc_session *leader, const llmc_function *function, const llmc_member *members, int n,
                               const llmc_tensor *inputs, const llmc_tensor *outputs, const int64_t *sizes,
                               llmc_error *error) {
    llmc_status status = LLMC_OK;
    int i;
    llmc_set_parts(leader, members, n);
    leader->n_parts = n;
    leader->part_bytes = llmc_bytes_of_parts(function, members, n);
    for (i = 0; i < n && status == LLMC_OK; i++)
        status = check_memory(leader, &members[i], function, inputs, sizes, error);
    if (status == LLMC_OK) status = place_inputs(leader, function, members, n, inputs, sizes, error);
    for (i = 0; i < n && status == LLMC_OK; i++)
        status = llmc_place_states(members[i].session, function, members[i].sizes, error);
    return status == LLMC_OK ? leader->model->device->run(leader, function, outputs, sizes, error) : status;
}

llmc_status llmc_run_members(llmc_session *leader, const llmc_function *function, const llmc_member *members, int n,
                             const llmc_tensor *inputs, const llmc_tensor *outputs, const int64_t *sizes,
                             const llmc_run_options *options, llmc_error *error) {
    double timeout = options ? options->timeout : 0;
    int i, why = llmc_take_turn(leader);
    llmc_status status;
    if (why) return given_up(why, timeout, error);
    status = run_in_turn(leader, function, members, n, inputs, outputs, sizes, error);
    if (status == LLMC_ERROR_MEMORY) { /* what other sizes left may be in the way */
        for (i = 0; i < n; i++) llmc_release_spare(members[i].session);
        status = run_in_turn(leader, function, members, n, inputs, outputs, sizes, error);
    }
    why = llmc_is_over(leader); /* also where the last steps were skipped */
    if (status == LLMC_OK && why) status = given_up(why, timeout, error);
    for (i = 0; i < n && status == LLMC_OK && !(options && options->discard); i++)
        llmc_commit_states(members[i].session, function, members[i].sizes);
    llmc_end_turn(leader);
    return status;
}

/* By one thread at a time, but for llmc_run(): there all that is written is written in turn. */
llmc_status llmc_run_claimed(llmc_session *session, const llmc_function *function, const llmc_tensor *inputs,
                             const llmc_tensor *outputs, const llmc_run_options *options, llmc_error *error) {
    llmc_binding bound;
    llmc_member member;
    llmc_status status = check_call(session, function, inputs, outputs, &bound, error);
    if (status != LLMC_OK) return status;
    member.session = session;
    memcpy(member.sizes, bound.sizes, sizeof member.sizes);
    return llmc_run_members(session, function, &member, 1, inputs, outputs, bound.sizes, options, error);
}

static llmc_status needs_session(const llmc_model *model, llmc_error *error) {
    const llmc_function *function = model->program->functions;
    int i;
    for (i = 0; i < model->program->n_states; i++)
        if (function->state_use[i] != LLMC_STATE_UNUSED)
            return llmc_fail(error, LLMC_ERROR_STATE, "open a session with llmc_session_open() and run it there",
                             "function %s keeps state %s from call to call, so it needs a session", function->name,
                             model->program->states[i].name);
    return LLMC_OK;
}

llmc_status llmc_run(llmc_model *model, const llmc_tensor *inputs, const llmc_tensor *outputs, llmc_error *error) {
    llmc_status status;
    if (!model || !inputs || !outputs)
        return llmc_fail(error, LLMC_ERROR_ARGUMENT, NULL, "model, inputs and outputs must not be NULL");
    status = llmc_check_owner(model, error);
    if (status == LLMC_OK) status = needs_session(model, error);
    return status == LLMC_OK ? llmc_run_claimed(model->own, model->program->functions, inputs, outputs, NULL, error) : status;
}

llmc_status llmc_session_run(llmc_session *session, int function, const llmc_tensor *inputs,
                             const llmc_tensor *outputs, const llmc_run_options *options, llmc_error *error) {
    const llmc_function *chosen;
    llmc_status status;
    if (!session || !inputs || !outputs)
        return llmc_fail(error, LLMC_ERROR_ARGUMENT, NULL, "session, inputs and outputs must not be NULL");
    if (options && !(options->timeout >= 0))
        return llmc_fail(error, LLMC_ERROR_ARGUMENT, "0 means none", "timeout is %g s, must not be negative",
                         options->timeout);
    status = llmc_claim(session, error);
    if (status != LLMC_OK) return status;
    if (options && options->timeout > 0) session->stop.until = llmc_now() + options->timeout;
    chosen = llmc_function_of(session->model, function, error);
    status = chosen ? llmc_run_claimed(session, chosen, inputs, outputs, options, error) : LLMC_ERROR_ARGUMENT;
    llmc_unclaim(session);
    return status;
}

static llmc_status output_shapes(const llmc_session *session, const llmc_function *function, const llmc_tensor *inputs,
                                 llmc_tensor *outputs, llmc_error *error) {
    llmc_binding bound;
    llmc_status status = llmc_bind(session, function, inputs, &bound, error);
    int i;
    if (status != LLMC_OK) return status;
    llmc_count_dims(session->model->program, function, inputs, bound.sizes);
    status = llmc_check_sizes(function, bound.sizes, error);
    for (i = 0; i < function->n_outputs && status == LLMC_OK; i++) {
        outputs[i].dtype = function->outputs[i].dtype;
        outputs[i].rank = function->outputs[i].rank;
        llmc_output_shape(function, bound.sizes, i, outputs[i].shape);
    }
    return status;
}

llmc_status llmc_output_shapes(const llmc_model *model, const llmc_tensor *inputs, llmc_tensor *outputs,
                               llmc_error *error) {
    llmc_status status;
    if (!model || !inputs || !outputs)
        return llmc_fail(error, LLMC_ERROR_ARGUMENT, NULL, "model, inputs and outputs must not be NULL");
    status = needs_session(model, error);
    return status == LLMC_OK ? output_shapes(model->own, model->program->functions, inputs, outputs, error) : status;
}

llmc_status llmc_session_output_shapes(llmc_session *session, int function, const llmc_tensor *inputs,
                                       llmc_tensor *outputs, llmc_error *error) {
    const llmc_function *chosen;
    llmc_status status;
    if (!session || !inputs || !outputs)
        return llmc_fail(error, LLMC_ERROR_ARGUMENT, NULL, "session, inputs and outputs must not be NULL");
    status = llmc_claim(session, error);
    if (status != LLMC_OK) return status;
    chosen = llmc_function_of(session->model, function, error);
    status = chosen ? output_shapes(session, chosen, inputs, outputs, error) : LLMC_ERROR_ARGUMENT;
    llmc_unclaim(session);
    return status;
}
