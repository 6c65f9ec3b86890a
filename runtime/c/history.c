/*
 * history.c - which tokens a session holds, so that a prompt that begins with them need not run them again.
 */
#include <stdlib.h>
#include <string.h>

#include "model.h"

llmc_status llmc_tokens_reserve(llmc_session *session, int64_t n, llmc_error *error) {
    int64_t room = session->room_for_tokens + session->room_for_tokens / 2, *tokens;
    if (n <= session->room_for_tokens) return LLMC_OK;
    if (room < n) room = n;
    tokens = (int64_t *)realloc(session->tokens, (size_t)room * sizeof *tokens);
    if (!tokens) return llmc_fail_memory(error, (size_t)room * sizeof *tokens);
    session->tokens = tokens;
    session->room_for_tokens = room;
    return LLMC_OK;
}

void llmc_tokens_cut(llmc_session *session, int64_t n) {
    if (session->n_tokens > n) session->n_tokens = n;
}

/* Behind what is known a run may append what is not. Where it replaces states, the others no longer go with them. */
void llmc_tokens_commit(llmc_session *session, const llmc_function *function) {
    const llmc_program *program = session->model->program;
    int i;
    for (i = 0; i < program->n_states; i++) {
        if (function->state_use[i] != LLMC_STATE_REPLACED) continue;
        session->n_tokens = 0;
        if (program->states[i].grows < 0 && llmc_fixed_history(program) >= 0) session->has_others = 1;
    }
}

int64_t llmc_tokens_shared(const llmc_session *session, const int64_t *tokens, int64_t n) {
    int64_t i = 0;
    while (i < n && i < session->n_tokens && tokens[i] == session->tokens[i]) i++;
    return i;
}
