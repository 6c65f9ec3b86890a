/*
 * parts.c - what each session has of a run: its sizes, the rows before its own, memory, states.
 */
#include <stdlib.h>
#include <string.h>

#include "model.h"

llmc_status llmc_table_open(llmc_session *session, int n, llmc_error *error) {
    llmc_table *table = &session->table, made;
    size_t count = (size_t)n, calls = session->model->program->call_bytes + 8;
    size_t each = sizeof *made.parts + sizeof *made.members + LLMC_MAX_DIMS * sizeof *made.before + calls;
    if (n <= table->room) return LLMC_OK;
    memset(&made, 0, sizeof made);
    made.parts = count < SIZE_MAX / each ? (llmc_part *)calloc(count, each) : NULL;
    if (!made.parts) return llmc_fail_memory(error, count * each);
    made.members = (llmc_member *)(void *)(made.parts + n);
    made.before = (int64_t *)(void *)(made.members + n);
    made.calls = made.before + (size_t)LLMC_MAX_DIMS * count;
    made.n = 1;
    made.room = n;
    free(table->parts);
    *table = made;
    return LLMC_OK;
}

void llmc_table_close(llmc_session *session) {
    free(session->table.parts);
}

void llmc_set_parts(llmc_session *leader, const llmc_member *members, int n) {
    const llmc_program *program = leader->model->program;
    llmc_table *table = &leader->table;
    int i, d;
    for (i = 0; i < n; i++) {
        llmc_part *part = &table->parts[i];
        int64_t *before = table->before + (size_t)i * LLMC_MAX_DIMS;
        for (d = 0; d < program->n_dims; d++)
            before[d] = i ? table->parts[i - 1].before[d] + members[i - 1].sizes[d] : 0;
        part->dims = members[i].sizes;
        part->before = before;
        part->states = members[i].session->states;
        part->next = members[i].session->next;
    }
}

size_t llmc_bytes_of_parts(const llmc_function *function, const llmc_member *members, int n) {
    size_t bytes = 0;
    int i;
    for (i = 0; function->part_bytes && i < n; i++) bytes += function->part_bytes(members[i].sizes);
    return bytes;
}

void llmc_place_parts(llmc_session *leader, const llmc_function *function, llmc_frame *frame) {
    unsigned char *at = leader->arena.at + function->arena_bytes(frame->dims);
    llmc_table *table = &leader->table;
    int i;
    for (i = 0; i < leader->n_parts; i++) {
        table->parts[i].arena = at;
        if (function->part_bytes) at += function->part_bytes(table->parts[i].dims);
    }
    frame->arena = leader->arena.at;
    frame->states = leader->states;
    frame->next = leader->next;
    frame->parts = table->parts;
    frame->n_parts = leader->n_parts;
    frame->calls = table->calls;
}

int llmc_is_over(llmc_session *leader) {
    int i, why = llmc_stopped(&leader->stop);
    for (i = 1; i < leader->table.n && !why; i++) {
        why = __atomic_load_n(&leader->table.members[i].session->stop.why, __ATOMIC_RELAXED);
        if (why) llmc_session_cancel(leader);
    }
    return why;
}
