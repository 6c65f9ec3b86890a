/*
 * adapter.c - which adapter a session has: a number, that of the rows of its tokens in the input "adapter".
 */
#include <string.h>

#include "model.h"

static const char *name_of(const llmc_program *program, int i) {
    return program->adapters[i];
}

llmc_status llmc_find_adapter(const llmc_program *program, const char *name, int64_t *adapter, llmc_error *error) {
    int i;
    *adapter = 0;
    if (!name) return LLMC_OK;
    for (i = 0; i < program->n_adapters; i++)
        if (strcmp(program->adapters[i], name) == 0) *adapter = i + 1;
    if (*adapter) return LLMC_OK;
    return llmc_no_such("adapter", name, program, name_of, program->n_adapters, error);
}

int llmc_says_adapter(const llmc_program *program, const llmc_tensor_spec *spec) {
    return program->n_adapters > 0 && strcmp(spec->name, LLMC_ADAPTER) == 0;
}

void llmc_fill_adapters(int64_t *data, const llmc_function *function, int input, const llmc_member *members, int n) {
    int i;
    for (i = 0; i < n; i++) {
        int64_t shape[LLMC_MAX_RANK];
        size_t rows;
        llmc_input_shape(function, members[i].sizes, input, shape);
        rows = llmc_elements(function->inputs[input].rank, shape);
        while (rows-- > 0) *data++ = members[i].session->adapter;
    }
}

llmc_status llmc_session_choose_adapter(llmc_session *session, const char *name, llmc_error *error) {
    int64_t adapter;
    llmc_status status;
    if (!session) return llmc_fail(error, LLMC_ERROR_ARGUMENT, NULL, "session must not be NULL");
    status = llmc_find_adapter(session->model->program, name, &adapter, error);
    if (status == LLMC_OK) status = llmc_claim(session, error);
    if (status != LLMC_OK) return status;
    if (adapter != session->adapter) llmc_forget(session); /* what it holds is the other one's */
    session->adapter = adapter;
    llmc_unclaim(session);
    return LLMC_OK;
}
