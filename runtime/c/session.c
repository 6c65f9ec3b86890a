/*
 * session.c - open, reset, look at and close a session; which thread may use it.
 */
#define _GNU_SOURCE

#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "model.h"

llmc_status llmc_check_owner(const llmc_model *model, llmc_error *error) {
    if (model->owner == getpid()) return LLMC_OK;
    return llmc_fail(error, LLMC_ERROR_FORK, "open the model after fork()",
                     "the model was opened by the parent process, whose threads are not in this one");
}

llmc_status llmc_claim(llmc_session *session, llmc_error *error) {
    llmc_status status = llmc_check_owner(session->model, error);
    if (status != LLMC_OK) return status;
    if (__atomic_exchange_n(&session->busy, 1, __ATOMIC_ACQUIRE))
        return llmc_fail(error, LLMC_ERROR_BUSY, "open a session for each thread",
                         "the session is in use by another thread");
    session->stop.until = 0;
    __atomic_store_n(&session->stop.why, LLMC_OK, __ATOMIC_RELAXED);
    return LLMC_OK;
}

void llmc_unclaim(llmc_session *session) {
    __atomic_store_n(&session->busy, 0, __ATOMIC_RELEASE);
}

static llmc_status find_threads(llmc_session *session, const llmc_session_options *options, llmc_error *error) {
    llmc_model *model = session->model;
    size_t scratch = model->program->scratch_bytes;
    session->in_turns = 1;
    if (options->shared) return llmc_join_threads(options->shared, scratch, &session->pool, &session->pool_can, error);
    session->pool = model->pool;
    session->pool_can = model->pool_can;
    if (!options->threads) return LLMC_OK;
    session->pool = NULL;
    session->in_turns = 0;
    session->owns_pool = 1;
    session->pool_can = &llmc_pool_can;
    return llmc_start_threads(options->threads, options->spin_us, options->pin, scratch, &session->pool, error);
}

static llmc_status find_memory(llmc_session *session, llmc_error *error) {
    const llmc_program *program = session->model->program;
    size_t inputs = 1, outputs = 1, states = (size_t)program->n_states + 1, all;
    int i;
    for (i = 0; i < program->n_functions; i++) {
        const llmc_function *function = &program->functions[i];
        if ((size_t)function->n_inputs > inputs) inputs = (size_t)function->n_inputs;
        if ((size_t)function->n_outputs > outputs) outputs = (size_t)function->n_outputs;
    }
    all = (inputs + outputs + 2 * states) * sizeof(void *) + 2 * states * sizeof(llmc_region) + states * sizeof(int64_t) + states;
    session->inputs = (const void **)calloc(1, all);
    if (!session->inputs) return llmc_fail_memory(error, all);
    session->outputs = (void **)(session->inputs + inputs);
    session->states = session->outputs + outputs;
    session->next = session->states + states;
    session->values = (llmc_region *)(void *)(session->next + states);
    session->others = session->values + states;
    session->gone = (int64_t *)(void *)(session->others + states);
    session->begun = (unsigned char *)(session->gone + states);
    for (i = 0; i < program->n_states; i++)
        session->values[i].appended = session->others[i].appended = llmc_is_appended(program, i);
    llmc_forget(session);
    return llmc_table_open(session, 1, error);
}

static const llmc_session_options DEFAULTS = {0, 0, 0, NULL, 0, NULL};

llmc_status llmc_session_open(llmc_model *model, const llmc_session_options *options, llmc_session **out,
                              llmc_error *error) {
    llmc_session *session;
    llmc_status status;
    if (!model || !out) return llmc_fail(error, LLMC_ERROR_ARGUMENT, NULL, "model and session must not be NULL");
    if (!options) options = &DEFAULTS;
    *out = NULL;
    status = llmc_check_owner(model, error);
    if (status != LLMC_OK) return status;
    session = (llmc_session *)calloc(1, sizeof *session);
    if (!session) return llmc_fail_memory(error, sizeof *session);
    session->model = model;
    session->max_memory = options->max_memory;
    __atomic_add_fetch(&model->users, 1, __ATOMIC_RELAXED);
    status = llmc_find_adapter(model->program, options->adapter, &session->adapter, error);
    if (status == LLMC_OK) status = find_memory(session, error);
    if (status == LLMC_OK) status = find_threads(session, options, error);
    if (status == LLMC_OK) status = model->device->open_session(session, error);
    if (status == LLMC_OK)
        *out = session;
    else
        llmc_session_close(session);
    return status;
}

static void release_all(llmc_session *session, int forked) {
    const llmc_device *device = session->model->device;
    int i;
    for (i = 0; session->values && i < session->model->program->n_states; i++) {
        llmc_release(session, device, &session->values[i], forked);
        llmc_release(session, device, &session->others[i], forked);
    }
    llmc_release(session, device, &session->arena, forked);
    llmc_release(session, &llmc_host, &session->defaults, forked);
}

void llmc_session_close(llmc_session *session) {
    llmc_model *model;
    int forked;
    if (!session) return;
    model = session->model;
    forked = model->owner != getpid();
    release_all(session, forked);
    model->device->close_session(session, forked);
    if (session->owns_pool && session->pool) (forked ? llmc_pool_abandon : llmc_pool_close)(session->pool);
    free(session->inputs);
    free(session->tokens);
    llmc_table_close(session);
    free(session);
    llmc_model_leave(model);
}

llmc_status llmc_session_reset(llmc_session *session, llmc_error *error) {
    llmc_status status;
    if (!session) return llmc_fail(error, LLMC_ERROR_ARGUMENT, NULL, "session must not be NULL");
    status = llmc_claim(session, error);
    if (status != LLMC_OK) return status;
    llmc_forget(session);
    llmc_unclaim(session);
    return LLMC_OK;
}

void llmc_session_cancel(llmc_session *session) {
    int none = LLMC_OK;
    if (session)
        __atomic_compare_exchange_n(&session->stop.why, &none, LLMC_ERROR_CANCELLED, 0, __ATOMIC_RELAXED,
                                    __ATOMIC_RELAXED);
}

llmc_status llmc_session_info(llmc_session *session, llmc_session_report *report, llmc_error *error) {
    llmc_status status;
    if (!session || !report)
        return llmc_fail(error, LLMC_ERROR_ARGUMENT, NULL, "session and report must not be NULL");
    status = llmc_claim(session, error);
    if (status != LLMC_OK) return status;
    memset(report, 0, sizeof *report);
    report->threads = session->pool_can->threads(session->pool);
    memcpy(report->sizes, session->sizes, sizeof report->sizes);
    report->state_bytes = llmc_bytes_of_states(session);
    report->adapter = (int)session->adapter;
    report->arena_bytes = session->held - report->state_bytes;
    report->shared_bytes = llmc_shared_of_states(session);
    llmc_unclaim(session);
    return LLMC_OK;
}
