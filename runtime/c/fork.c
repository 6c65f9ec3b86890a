/*
 * fork.c - another session that holds what one does. They share the memory of each state until one of the two writes to
 * it, which then has a copy of its own: of the blocks that it writes, or of all where the state lies in one piece. The last
 * to hold memory writes where it is.
 */
#include <string.h>

#include "model.h"

static llmc_status share_state(llmc_session *from, llmc_session *to, int i, llmc_error *error) {
    llmc_status status = LLMC_OK;
    to->gone[i] = from->gone[i];
    to->begun[i] = from->begun[i];
    if (from->begun[i] && from->values[i].at) status = llmc_share(to, &to->values[i], &from->values[i],
                            llmc_held_bytes(from->model->program, from->sizes, i, from->gone[i]), error);
    return status;
}

static llmc_status share_all(llmc_session *from, llmc_session *to, llmc_error *error) {
    llmc_status status = llmc_tokens_reserve(to, from->n_tokens, error);
    int i;
    if (status == LLMC_OK) status = from->model->device->fetch(from, NULL, NULL, 0, error); /* what it wrote is done */
    for (i = 0; i < from->model->program->n_states && status == LLMC_OK; i++) status = share_state(from, to, i, error);
    if (status != LLMC_OK) return status;
    if (from->n_tokens) memcpy(to->tokens, from->tokens, (size_t)from->n_tokens * sizeof *to->tokens);
    to->n_tokens = from->n_tokens;
    to->has_others = from->has_others;
    to->adapter = from->adapter;
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
    if (status == LLMC_OK) status = share_all(session, *other, error);
    llmc_unclaim(session);
    if (status != LLMC_OK) {
        llmc_session_close(*other);
        *other = NULL;
    }
    return status;
}
