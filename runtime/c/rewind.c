/*
 * rewind.c - put a session back to a shorter length.
 */
#include <string.h>

#include "model.h"

int llmc_growing_dim(const llmc_program *program) {
    int d, found = -1;
    for (d = 0; d < program->n_dims; d++) {
        if (llmc_dim_of_states(program, d) != 2) continue;
        if (found >= 0) return -1;
        found = d;
    }
    return found;
}

static int grows(const llmc_function *function, const llmc_program *program) {
    int i;
    for (i = 0; i < program->n_states; i++)
        if (program->states[i].grows >= 0 && function->state_use[i] >= LLMC_STATE_APPENDED) return 1;
    return 0;
}

/* A state that a function sets beside others that grow changes with every token. One that is set by a function of its
 * own, as an encoder's, stays what it is at every length. Where nothing grows all are of the first kind. */
int llmc_fixed_history(const llmc_program *program) {
    int i, f, any = llmc_growing_dim(program) >= 0;
    for (i = 0; i < program->n_states; i++)
        for (f = 0; f < program->n_functions && program->states[i].grows < 0; f++)
            if (program->functions[f].state_use[i] == LLMC_STATE_REPLACED &&
                (!any || grows(&program->functions[f], program)))
                return i;
    return -1;
}

static llmc_status cannot(const llmc_session *session, int state, int64_t length, llmc_error *error) {
    return llmc_fail(error, LLMC_ERROR_STATE, "reset the session and run the sequence again, or fork it beforehand",
                     "the session cannot go back to %lld: state %s keeps no trace of what it was", (long long)length,
                     session->model->program->states[state].name);
}

llmc_status llmc_rewind(llmc_session *session, int64_t length, llmc_error *error) {
    const llmc_program *program = session->model->program;
    int d = llmc_growing_dim(program), fixed = llmc_fixed_history(program);
    int64_t sizes[LLMC_MAX_DIMS];
    if (length < 0)
        return llmc_fail(error, LLMC_ERROR_ARGUMENT, NULL, "length is %lld, must not be negative", (long long)length);
    if (d >= 0 && length > session->sizes[d])
        return llmc_fail(error, LLMC_ERROR_STATE, NULL, "the session cannot go back to %lld: %s is %lld", (long long)length,
                         program->dims[d].name, (long long)session->sizes[d]);
    if (d >= 0 && length == session->sizes[d]) return LLMC_OK;
    if (fixed >= 0 && length == 0) llmc_forget(session);
    if (fixed >= 0) return length ? cannot(session, fixed, length, error) : LLMC_OK;
    if (d < 0)
        return llmc_fail(error, LLMC_ERROR_STATE, "llmc_session_resize() sets each", "the session has no one length");
    memcpy(sizes, session->sizes, sizeof sizes);
    sizes[d] = length;
    return llmc_resize(session, sizes, error);
}

llmc_status llmc_session_rewind(llmc_session *session, int64_t length, llmc_error *error) {
    llmc_status status;
    if (!session) return llmc_fail(error, LLMC_ERROR_ARGUMENT, NULL, "session must not be NULL");
    status = llmc_claim(session, error);
    if (status != LLMC_OK) return status;
    status = llmc_rewind(session, length, error);
    llmc_unclaim(session);
    return status;
}
