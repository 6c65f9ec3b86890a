/*
 * states.c - what a session keeps from one call to the next: memory, lengths, and how a call that succeeded changes them.
 *
 * A state that a call appends to keeps its memory, and only its length says what of it counts. One that is replaced has
 * two memories in turns. So a call that fails has changed nothing.
 */
#include <string.h>

#include "model.h"

int llmc_length_of_state(const llmc_program *program, int i) {
    const llmc_state_spec *spec = &program->states[i];
    return spec->grows < 0 ? -1 : (int)(-1 - spec->dims[spec->grows]);
}

int llmc_dim_of_states(const llmc_program *program, int d) {
    int i, axis, found = 0;
    for (i = 0; i < program->n_states; i++) {
        if (llmc_length_of_state(program, i) == d) return 2;
        for (axis = 0; axis < program->states[i].rank; axis++) found |= program->states[i].dims[axis] == -1 - d;
    }
    return found;
}

int llmc_is_appended(const llmc_program *program, int i) {
    int f, found = 0;
    for (f = 0; f < program->n_functions; f++) found |= program->functions[f].state_use[i] == LLMC_STATE_APPENDED;
    return found;
}

void llmc_forget(llmc_session *session) {
    const llmc_program *program = session->model->program;
    int d;
    for (d = 0; d < LLMC_MAX_DIMS; d++)
        session->sizes[d] = d < program->n_dims && llmc_dim_of_states(program, d) == 2 ? 0 : -1;
    if (program->n_states) memset(session->begun, 0, (size_t)program->n_states);
    if (program->n_states) memset(session->gone, 0, (size_t)program->n_states * sizeof *session->gone);
    session->n_tokens = 0;
    session->has_others = 0;
}

static int changes(const llmc_function *function, int i) {
    return function->state_use[i] == LLMC_STATE_APPENDED || function->state_use[i] == LLMC_STATE_REPLACED;
}

llmc_status llmc_check_growth(const llmc_program *program, const llmc_function *function, const int64_t *sizes,
                              llmc_error *error) {
    int i;
    for (i = 0; i < program->n_states; i++) {
        int d = llmc_length_of_state(program, i);
        int64_t length;
        if (d < 0 || !changes(function, i)) continue;
        length = function->state_length(sizes, i);
        if (length > program->dims[d].high)
            return llmc_fail(error, LLMC_ERROR_STATE, "reset the session, or compile with a larger bound",
                             "%s is %lld in the session and would be %lld after this call, at most %lld is possible",
                             program->dims[d].name, (long long)sizes[d], (long long)length,
                             (long long)program->dims[d].high);
    }
    return LLMC_OK;
}

/* Of so many bytes of `length` rows those of `rows`. */
static size_t part_of(size_t bytes, int64_t length, int64_t rows) {
    return length > 0 ? bytes / (size_t)length * (size_t)rows : bytes;
}

static llmc_room room_in_window(const llmc_program *program, const llmc_function *function, const int64_t *sizes, int i,
                                int64_t gone) {
    llmc_room room = {0, 0, 0};
    int64_t length = function->state_length(sizes, i), before = sizes[llmc_length_of_state(program, i)];
    size_t after = function->state_bytes(sizes, i, 1);
    room.before = part_of(after, length, before - gone);
    room.value = part_of(after, length, llmc_rows_for(program, i, length - gone));
    return room;
}

llmc_room llmc_room_of_state(const llmc_program *program, const llmc_function *function, const int64_t *sizes, int i,
                             int64_t gone) {
    llmc_room room = {0, 0, 0};
    size_t after;
    if (function->state_use[i] == LLMC_STATE_UNUSED) return room;
    if (llmc_window_of(program, i)) return room_in_window(program, function, sizes, i, gone);
    room.before = room.value = function->state_bytes(sizes, i, 0);
    after = changes(function, i) ? function->state_bytes(sizes, i, 1) : 0;
    if (function->state_use[i] == LLMC_STATE_REPLACED) room.next = after;
    if (function->state_use[i] == LLMC_STATE_APPENDED && after > room.before) room.value = after;
    return room;
}

size_t llmc_held_bytes(const llmc_program *program, const int64_t *sizes, int i, int64_t gone) {
    const llmc_function *function = llmc_user_of_state(program, i);
    int d = llmc_length_of_state(program, i);
    if (!function) return 0;
    return d < 0 ? function->state_bytes(sizes, i, 0) : part_of(function->state_bytes(sizes, i, 0), sizes[d], sizes[d] - gone);
}

/* How many rows of state `i` will not be there in a call of these sizes. */
static int64_t gone_in(const llmc_session *session, const int64_t *sizes, int i) {
    const llmc_program *program = session->model->program;
    int64_t more = llmc_window_of(program, i) ? llmc_may_leave(program, i, sizes[llmc_length_of_state(program, i)] - session->back) : 0;
    return more > session->gone[i] ? more : session->gone[i];
}

size_t llmc_growth_of_states(const llmc_session *session, const llmc_function *function, const int64_t *sizes,
                             int generous) {
    const llmc_program *program = session->model->program;
    size_t bytes = 0;
    int i;
    for (i = 0; i < program->n_states; i++) {
        llmc_room room = llmc_room_of_state(program, function, sizes, i, gone_in(session, sizes, i));
        if (function->state_use[i] == LLMC_STATE_UNUSED) continue;
        bytes += llmc_growth_of(session->model, &session->values[i], room.value, generous && !llmc_window_of(program, i));
        if (function->state_use[i] == LLMC_STATE_REPLACED)
            bytes += llmc_growth_of(session->model, &session->others[i], room.next, generous);
    }
    return bytes;
}

size_t llmc_copies_of_states(const llmc_session *session, const llmc_function *function, const int64_t *sizes) {
    const llmc_model *model = session->model;
    size_t bytes = 0;
    int i;
    for (i = 0; i < model->program->n_states; i++) {
        llmc_room room;
        if (function->state_use[i] == LLMC_STATE_UNUSED) continue;
        room = llmc_room_of_state(model->program, function, sizes, i, gone_in(session, sizes, i));
        if (gone_in(session, sizes, i) > session->gone[i] || !session->begun[i]) room.before = 0;
        if (function->state_use[i] == LLMC_STATE_APPENDED || !session->begun[i])
            bytes += llmc_shared_in(model, &session->values[i], room.before, room.value);
        if (function->state_use[i] == LLMC_STATE_REPLACED)
            bytes += llmc_shared_in(model, &session->others[i], 0, room.next);
    }
    return bytes;
}

uint64_t llmc_shared_of_states(const llmc_session *session) {
    uint64_t bytes = 0;
    int i;
    for (i = 0; i < session->model->program->n_states; i++) {
        bytes += llmc_shared_in(session->model, &session->values[i], 0, session->values[i].bytes);
        bytes += llmc_shared_in(session->model, &session->others[i], 0, session->others[i].bytes);
    }
    return bytes;
}

uint64_t llmc_bytes_of_states(const llmc_session *session) {
    uint64_t bytes = 0;
    int i;
    for (i = 0; i < session->model->program->n_states; i++)
        bytes += session->values[i].bytes + session->others[i].bytes;
    return bytes;
}

/* Memory for the value of state `i` now and after the call. */
static llmc_status place(llmc_session *session, const llmc_function *function, int i, const int64_t *sizes,
                         llmc_error *error) {
    const llmc_device *device = session->model->device;
    llmc_room room = llmc_room_of_state(session->model->program, function, sizes, i, session->gone[i]);
    size_t keep = session->begun[i] ? room.before : 0;
    llmc_status status = llmc_reserve(session, device, &session->values[i], room.value, keep, error);
    if (status == LLMC_OK && (function->state_use[i] == LLMC_STATE_APPENDED || !session->begun[i]))
        status = llmc_unshare(session, device, &session->values[i], keep, room.value, keep, error);
    if (status == LLMC_OK && !session->begun[i] && room.before)
        status = device->copy(session, session->values[i].at, NULL, room.before, error);
    if (status == LLMC_OK && function->state_use[i] == LLMC_STATE_REPLACED)
        status = llmc_reserve(session, device, &session->others[i], room.next, 0, error);
    if (status == LLMC_OK && function->state_use[i] == LLMC_STATE_REPLACED)
        status = llmc_unshare(session, device, &session->others[i], 0, room.next, 0, error);
    if (status == LLMC_OK) session->states[i] = session->values[i].at;
    return status;
}

/* The same of one with a window, which grows by blocks: the address of row 0, whether it is there or not. */
static llmc_status place_in_window(llmc_session *session, const llmc_function *function, int i, const int64_t *sizes,
                                   llmc_error *error) {
    const llmc_program *program = session->model->program;
    size_t row = part_of(function->state_bytes(sizes, i, 1), function->state_length(sizes, i), 1);
    llmc_room room = llmc_room_of_state(program, function, sizes, i, gone_in(session, sizes, i));
    int generous = session->generous;
    llmc_status status = llmc_let_leave(session, i, sizes[llmc_length_of_state(program, i)], row, room.value, error);
    session->generous = 0;
    if (status == LLMC_OK) status = place(session, function, i, sizes, error);
    session->generous = generous;
    if (status == LLMC_OK)
        session->states[i] = (void *)((uintptr_t)session->values[i].at - (uintptr_t)session->gone[i] * row);
    return status;
}

llmc_status llmc_place_states(llmc_session *session, const llmc_function *function, const int64_t *sizes,
                              llmc_error *error) {
    const llmc_program *program = session->model->program;
    int i;
    for (i = 0; i < program->n_states; i++) {
        llmc_status status;
        session->states[i] = session->next[i] = NULL;
        if (function->state_use[i] == LLMC_STATE_UNUSED) continue;
        status = (llmc_window_of(program, i) ? place_in_window : place)(session, function, i, sizes, error);
        if (status != LLMC_OK) return status;
        if (function->state_use[i] == LLMC_STATE_REPLACED) session->next[i] = session->others[i].at;
    }
    return LLMC_OK;
}

void llmc_release_spare(llmc_session *session) {
    const llmc_device *device = session->model->device;
    int i;
    for (i = 0; i < session->model->program->n_states; i++) {
        llmc_release(session, device, &session->others[i], 0);
        if (!session->begun[i]) llmc_release(session, device, &session->values[i], 0);
    }
    llmc_release(session, device, &session->arena, 0);
    llmc_release(session, &llmc_host, &session->defaults, 0);
}

static void flip(llmc_session *session, int i) {
    llmc_region value = session->values[i];
    session->values[i] = session->others[i];
    session->others[i] = value;
}

void llmc_commit_states(llmc_session *session, const llmc_function *function, const int64_t *sizes) {
    const llmc_program *program = session->model->program;
    int i, axis;
    for (i = 0; i < program->n_states; i++) {
        const llmc_state_spec *spec = &program->states[i];
        if (function->state_use[i] == LLMC_STATE_UNUSED) continue;
        for (axis = 0; axis < spec->rank; axis++)
            if (spec->dims[axis] < 0 && spec->dims[axis] != INT64_MIN && axis != spec->grows)
                session->sizes[-1 - spec->dims[axis]] = sizes[-1 - spec->dims[axis]];
        if (spec->grows >= 0 && changes(function, i))
            session->sizes[llmc_length_of_state(program, i)] = function->state_length(sizes, i);
        if (function->state_use[i] == LLMC_STATE_REPLACED) flip(session, i);
        session->begun[i] = 1;
    }
    llmc_tokens_commit(session, function);
}
