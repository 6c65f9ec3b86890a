/*
 * fork.c - another session that holds what one does. All of it is copied; blocks that are shared until one of the two
 * writes to them would make a fork cost nothing, and are not there yet.
 */
#include <string.h>

#include "model.h"

static llmc_status copy_state(const llmc_session *from, llmc_session *to, int i, llmc_error *error) {
    const llmc_device *device = from->model->device;
    size_t bytes;
    llmc_status status;
    to->gone[i] = from->gone[i];
    if (!from->begun[i]) return LLMC_OK;
    bytes = llmc_held_bytes(from->model->program, from->sizes, i, from->gone[i]);
    status = llmc_reserve(to, device, &to->values[i], bytes, 0, error);
    if (status == LLMC_OK && bytes) status = device->copy(to, to->values[i].at, from->values[i].at, bytes, error);
    to->begun[i] = 1;
    return status;
}

static llmc_status copy_all(const llmc_session *from, llmc_session *to, llmc_error *error) {
    llmc_status status = llmc_tokens_reserve(to, from->n_tokens, error);
    int i;
    for (i = 0; i < from->model->program->n_states && status == LLMC_OK; i++) status = copy_state(from, to, i, error);
    if (status == LLMC_OK) status = from->model->device->fetch(to, NULL, NULL, 0, error); /* the copies are done */
    if (status != LLMC_OK) return status;
    if (from->n_tokens) memcpy(to->tokens, from->tokens, (size_t)from->n_tokens * sizeof *to->tokens);
    to->n_tokens = from->n_tokens;
    to->has_others = from->has_others;
    to->back = from->back;
    memcpy(to->sizes, from->sizes, sizeof to->sizes);
    return LLMC_OK;
}

llmc_status llmc_session_fork(llmc_session *session, const llmc_session_options *options, llmc_session **other,
                              llmc_error *error) {
    llmc_status status;
    if (!session || !other)
        return llmc_fail(error, LLMC_ERROR_ARGUMENT, NULL, "session and other must not be NULL");
    *other = NULL;
    status = llmc_claim(session, error);
    if (status != LLMC_OK) return status;
    status = llmc_session_open(session->model, options, other, error);
    if (status == LLMC_OK) status = copy_all(session, *other, error);
    llmc_unclaim(session);
    if (status != LLMC_OK) {
        llmc_session_close(*other);
        *other = NULL;
    }
    return status;
}
