/*
 * sessions.c - one run for several sessions of a model: all of them or none.
 */
#include <stdio.h>
#include <string.h>

#include "model.h"

/* Say which session an error is about. */
static llmc_status of_session(int i, llmc_status status, llmc_error *error) {
    char message[sizeof error->message];
    if (status == LLMC_OK || !error) return status;
    memcpy(message, error->message, sizeof message);
    snprintf(error->message, sizeof error->message, "session %d: %.490s", i, message);
    return status;
}

static llmc_status check_members(const llmc_member *members, int n, llmc_error *error) {
    int i, j;
    for (i = 0; i < n; i++) {
        if (!members[i].session)
            return of_session(i, llmc_fail(error, LLMC_ERROR_ARGUMENT, NULL, "it must not be NULL"), error);
        if (members[i].session->model != members->session->model)
            return of_session(i, llmc_fail(error, LLMC_ERROR_ARGUMENT, "one run is for sessions of one model",
                                           "it is another model's than session 0"), error);
        for (j = 0; j < i; j++)
            if (members[i].session == members[j].session)
                return of_session(i, llmc_fail(error, LLMC_ERROR_ARGUMENT, "fork it, or run twice",
                                               "it is the same as session %d", j), error);
    }
    return LLMC_OK;
}

static llmc_status check_function(const llmc_model *model, const llmc_function *function, llmc_error *error) {
    const char *why = model->device->single ? model->device->single : function->single;
    if (function->batches && !model->device->single) return LLMC_OK;
    return llmc_fail(error, LLMC_ERROR_ARGUMENT, "run each session by itself",
                     "function %s runs for one session at a time: %.300s", function->name, why ? why : "it says no more");
}

static void unclaim(const llmc_member *members, int n) {
    while (n > 0) llmc_unclaim(members[--n].session);
}

static llmc_status claim(const llmc_member *members, int n, llmc_error *error) {
    int i;
    for (i = 0; i < n; i++) {
        llmc_status status = of_session(i, llmc_claim(members[i].session, error), error);
        if (status == LLMC_OK) continue;
        unclaim(members, i);
        return status;
    }
    return LLMC_OK;
}

/* The sizes of each member, and those of all together. */
static llmc_status bind(const llmc_member *members, int n, const llmc_function *function, llmc_member *bound,
                        int64_t *together, llmc_error *error) {
    const llmc_program *program = members->session->model->program;
    int i, d;
    memset(together, 0, LLMC_MAX_DIMS * sizeof *together);
    for (i = 0; i < n; i++) {
        llmc_binding one;
        llmc_status status = llmc_bind_sizes(members[i].session, function, members[i].sizes, &one, error);
        if (status == LLMC_OK) status = llmc_check_sizes(function, one.sizes, error);
        if (status == LLMC_OK) status = llmc_check_growth(program, function, one.sizes, error);
        if (status != LLMC_OK) return of_session(i, status, error);
        bound[i].session = members[i].session;
        memcpy(bound[i].sizes, one.sizes, sizeof bound[i].sizes);
        for (d = 0; d < program->n_dims; d++)
            if (n == 1 || !llmc_dim_of_states(program, d)) together[d] += one.sizes[d];
    }
    return LLMC_OK;
}

llmc_status llmc_run_together(const llmc_member *members, int n, const llmc_function *function,
                              const llmc_tensor *inputs, const llmc_tensor *outputs, const llmc_run_options *options,
                              llmc_error *error) {
    llmc_session *leader = members->session;
    llmc_table *table = &leader->table;
    int64_t sizes[LLMC_MAX_DIMS];
    llmc_status status = check_function(leader->model, function, error);
    if (status == LLMC_OK) status = llmc_table_open(leader, n, error);
    if (status == LLMC_OK) status = bind(members, n, function, table->members, sizes, error);
    if (status == LLMC_OK) status = llmc_bind_together(leader->model->program, function, inputs, sizes, error);
    if (status == LLMC_OK) status = llmc_check_values(function, inputs, error);
    if (status == LLMC_OK) status = llmc_check_outputs(function, outputs, sizes, error);
    if (status != LLMC_OK) return status;
    table->n = n;
    status = llmc_run_members(leader, function, table->members, n, inputs, outputs, sizes, options, error);
    table->n = 1;
    return status;
}

llmc_status llmc_sessions_run(const llmc_member *members, int n, int function, const llmc_tensor *inputs,
                              const llmc_tensor *outputs, const llmc_run_options *options, llmc_error *error) {
    const llmc_function *chosen;
    llmc_status status;
    if (!members || !inputs || !outputs || n < 1)
        return llmc_fail(error, LLMC_ERROR_ARGUMENT, NULL, "members, inputs and outputs must not be NULL, n is at least 1");
    if (options && !(options->timeout >= 0))
        return llmc_fail(error, LLMC_ERROR_ARGUMENT, "0 means none", "timeout is %g s, must not be negative",
                         options->timeout);
    status = check_members(members, n, error);
    if (status == LLMC_OK) status = claim(members, n, error);
    if (status != LLMC_OK) return status;
    if (options && options->timeout > 0) members->session->stop.until = llmc_now() + options->timeout;
    chosen = llmc_function_of(members->session->model, function, error);
    status = chosen ? llmc_run_together(members, n, chosen, inputs, outputs, options, error) : LLMC_ERROR_ARGUMENT;
    unclaim(members, n);
    return status;
}
