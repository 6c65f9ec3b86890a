/*
 * windows.c - states of which queries see the newest positions alone: rows that have left are let go of, in whole blocks.
 *
 * A block is what kernels read together, counted from the first position of the text, so nothing in the kernels changes:
 * they get the address that row 0 would have, and never touch the rows that are gone. Rows leave before a call, not
 * after it, so a session can go back to wherever the last call began.
 */
#include "model.h"

#define BLOCK 64
#define MOST_BACK 64 /* a session that goes back by so many positions at most keeps as many more from then on */

int64_t llmc_window_of(const llmc_program *program, int i) {
    return program->windows ? program->windows[i] : 0;
}

/* Rows that leave together: of wide windows more, so that moving what stays is little beside reading it. */
static int64_t leaving(int64_t window) {
    return window < 32 * BLOCK ? BLOCK : window / 16 / BLOCK * BLOCK;
}

int64_t llmc_unseen(const llmc_program *program, int i, int64_t length) {
    int64_t window = llmc_window_of(program, i);
    return window && length >= window ? length - window + 1 : 0;
}

int64_t llmc_may_leave(const llmc_program *program, int i, int64_t length) {
    int64_t window = llmc_window_of(program, i), unseen = llmc_unseen(program, i, length);
    return window ? unseen - unseen % leaving(window) : 0;
}

int64_t llmc_rows_for(const llmc_program *program, int i, int64_t rows) {
    int64_t window = llmc_window_of(program, i), usual = window + leaving(window);
    int64_t whole = (rows + BLOCK - 1) / BLOCK * BLOCK;
    return !window ? rows : whole <= usual ? whole : rows > usual ? rows : usual;
}

/* Row by row towards the front, in pieces that do not overlap. */
llmc_status llmc_move_up(llmc_session *session, unsigned char *to, size_t by, size_t bytes, llmc_error *error) {
    llmc_status status = LLMC_OK;
    size_t done;
    for (done = 0; done < bytes && status == LLMC_OK; done += by)
        status = session->model->device->copy(session, to + done, to + done + by, bytes - done < by ? bytes - done : by, error);
    return status;
}

/* Into memory of the size that is needed, where the old has much more or others hold it too; 0: there is none. */
static int moved_out(llmc_session *session, int i, size_t from, size_t bytes, size_t room) {
    const llmc_device *device = session->model->device;
    llmc_region old = session->values[i], fresh = {NULL, NULL, 0, NULL, NULL, old.appended};
    if (!llmc_shared_in(session->model, &old, 0, old.bytes) && old.bytes / 2 < llmc_held_for(room)) return 0;
    if (llmc_reserve(session, device, &fresh, room, 0, NULL) != LLMC_OK) return 0;
    if (device->copy(session, fresh.at, old.at + from, bytes, NULL) != LLMC_OK ||
        device->fetch(session, NULL, NULL, 0, NULL) != LLMC_OK) { /* done, before the old is given back */
        llmc_release(session, device, &fresh, 0);
        return 0;
    }
    llmc_release(session, device, &old, 0);
    session->values[i] = fresh;
    return 1;
}

llmc_status llmc_let_leave(llmc_session *session, int i, int64_t length, size_t row, size_t room, llmc_error *error) {
    int64_t gone = llmc_may_leave(session->model->program, i, length - session->back), more = gone - session->gone[i];
    size_t by, bytes;
    llmc_status status;
    if (more <= 0) return LLMC_OK;
    session->gone[i] = gone;
    if (!session->begun[i]) return LLMC_OK;
    by = (size_t)more * row;
    bytes = (size_t)(length - gone) * row;
    if (!bytes || moved_out(session, i, by, bytes, room)) return LLMC_OK;
    status = llmc_unshare(session, session->model->device, &session->values[i], 0, by + bytes, by + bytes, error);
    if (status != LLMC_OK) {
        session->gone[i] -= more;
        return status;
    }
    status = llmc_move_up(session, session->values[i].at, by, bytes, error);
    if (status != LLMC_OK) llmc_forget(session); /* a device that cannot copy: what is where is not known any more */
    return status;
}

llmc_status llmc_check_seen(llmc_session *session, const int64_t *sizes, llmc_error *error) {
    const llmc_program *program = session->model->program;
    int i;
    for (i = 0; i < program->n_states; i++) {
        int d = llmc_window_of(program, i) ? llmc_length_of_state(program, i) : -1;
        int64_t back = d < 0 ? 0 : session->sizes[d] - sizes[d];
        if (back <= 0) continue;
        if (back <= MOST_BACK && back > session->back) session->back = back;
        if (sizes[d] > 0 && session->gone[i] > llmc_unseen(program, i, sizes[d]))
            return llmc_fail(error, LLMC_ERROR_STATE, "reset the session and run the sequence again, or fork it beforehand",
                             "the session cannot go back to %lld: state %s has a window of %lld positions, and the first %lld "
                             "have left it", (long long)sizes[d], program->states[i].name,
                             (long long)llmc_window_of(program, i), (long long)session->gone[i]);
    }
    return LLMC_OK;
}
