/*
 * resize.c - put a session at other lengths: forget the newest positions, or add zeros.
 */
#include <string.h>

#include "model.h"

/* A function that says how many bytes state `i` has. */
const llmc_function *llmc_user_of_state(const llmc_program *program, int i) {
    int f;
    for (f = 0; f < program->n_functions; f++)
        if (program->functions[f].state_use[i] != LLMC_STATE_UNUSED) return &program->functions[f];
    return NULL;
}

static llmc_status take_size(const llmc_program *program, int d, int64_t asked, int64_t *size, llmc_error *error) {
    const llmc_dim_info *dim = &program->dims[d];
    int is_length = llmc_dim_of_states(program, d) == 2;
    if (!is_length && asked < 0) return LLMC_OK; /* as it is, known or not */
    if (asked < (is_length ? 0 : dim->low) || asked > dim->high)
        return llmc_fail(error, LLMC_ERROR_SHAPE, NULL, "%s is %lld, must be within %lld..%lld", dim->name,
                         (long long)asked, (long long)(is_length ? 0 : dim->low), (long long)dim->high);
    if (!is_length && *size >= 0 && *size != asked)
        return llmc_fail(error, LLMC_ERROR_STATE, "reset the session to begin with other sizes, or use another",
                         "%s is %lld, but %lld in the session", dim->name, (long long)asked, (long long)*size);
    *size = asked;
    return LLMC_OK;
}

/* Whether all sizes of state `i` are known. */
static int is_known(const llmc_program *program, int i, const int64_t *sizes) {
    const llmc_state_spec *spec = &program->states[i];
    int axis;
    for (axis = 0; axis < spec->rank; axis++)
        if (spec->dims[axis] < 0 && spec->dims[axis] != INT64_MIN && sizes[-1 - spec->dims[axis]] < 0) return 0;
    return 1;
}

typedef struct move { /* of one state */
    size_t before, after; /* bytes */
    int64_t gone;         /* rows that are not there then */
    size_t leaving;       /* bytes of those that are there now */
    size_t outer;         /* parts that lie one after the other and grow each */
} move;

/* Of a longer state more leave; at length 0 none have. */
static int64_t rows_gone(const llmc_session *session, int i, const int64_t *sizes) {
    const llmc_program *program = session->model->program;
    int64_t length = sizes[llmc_length_of_state(program, i)], gone = llmc_may_leave(program, i, length - session->back);
    return !length ? 0 : gone > session->gone[i] ? gone : session->gone[i];
}

static llmc_status plan_move(const llmc_session *session, int i, const int64_t *sizes, move *m, llmc_error *error) {
    const llmc_program *program = session->model->program;
    const llmc_state_spec *spec = &program->states[i];
    const llmc_function *function = llmc_user_of_state(program, i);
    int axis;
    memset(m, 0, sizeof *m);
    if (!function) return LLMC_OK;
    if (!is_known(program, i, sizes)) {
        if (spec->grows < 0 || sizes[-1 - spec->dims[spec->grows]] == 0) return LLMC_OK;
        return llmc_fail(error, LLMC_ERROR_STATE, "run the session once, or give all sizes",
                         "state %s cannot have a length: its other sizes are not known yet", spec->name);
    }
    if (llmc_window_of(program, i)) m->gone = rows_gone(session, i, sizes);
    m->before = session->begun[i] ? llmc_held_bytes(program, session->sizes, i, session->gone[i]) : 0;
    m->after = llmc_held_bytes(program, sizes, i, m->gone);
    if (m->gone > session->gone[i])
        m->leaving = llmc_held_bytes(program, sizes, i, session->gone[i]) - m->after; /* of a window of 1 all may leave */
    m->outer = 1;
    for (axis = 0; axis < spec->grows; axis++) {
        int64_t d = spec->dims[axis];
        if (d == INT64_MIN)
            return llmc_fail(error, LLMC_ERROR_STATE, "reset the session instead",
                             "state %s cannot be cut: axis %d before the one that grows is an expression", spec->name, axis);
        m->outer *= (size_t)(d >= 0 ? d : sizes[-1 - d]);
    }
    return LLMC_OK;
}

static llmc_status reserve(llmc_session *session, int i, const move *m, llmc_error *error) {
    const llmc_device *device = session->model->device;
    llmc_region *region = m->outer > 1 ? &session->others[i] : &session->values[i];
    size_t keep = m->outer > 1 ? 0 : m->before;
    llmc_status status = llmc_reserve(session, device, region, m->after, keep, error);
    if (status != LLMC_OK || (m->after <= keep && !m->leaving)) return status;
    return llmc_unshare(session, device, region, m->leaving ? 0 : keep, m->after > keep ? m->after : keep, keep, error);
}

/* A whole state stays, but for rows that leave, and gets zeros behind it. */
static llmc_status extend(llmc_session *session, int i, const move *m, llmc_error *error) {
    unsigned char *at = session->values[i].at;
    size_t kept = m->before > m->leaving ? m->before - m->leaving : 0;
    llmc_status status = m->leaving ? llmc_move_up(session, at, m->leaving, kept, error) : LLMC_OK;
    session->gone[i] = m->gone;
    if (status != LLMC_OK || m->after <= kept) return status;
    return session->model->device->copy(session, at + kept, NULL, m->after - kept, error);
}

/* Parts of other lengths go to the other memory, one by one. */
static llmc_status carry_out(llmc_session *session, int i, const move *m, llmc_error *error) {
    const llmc_device *device = session->model->device;
    size_t from = m->outer ? m->before / m->outer : 0, to = m->outer ? m->after / m->outer : 0, part;
    llmc_region value = session->values[i];
    llmc_status status = LLMC_OK;
    if (m->outer <= 1) return m->outer ? extend(session, i, m, error) : LLMC_OK;
    if (m->after) status = device->copy(session, session->others[i].at, NULL, m->after, error);
    for (part = 0; part < m->outer && from && to && status == LLMC_OK; part++)
        status = device->copy(session, session->others[i].at + part * to, value.at + part * from,
                              from < to ? from : to, error);
    session->values[i] = session->others[i];
    session->others[i] = value;
    return status;
}

llmc_status llmc_resize(llmc_session *session, const int64_t *asked, llmc_error *error) {
    const llmc_program *program = session->model->program;
    int64_t sizes[LLMC_MAX_DIMS];
    llmc_status status = LLMC_OK;
    move m;
    int i, d;
    session->generous = 0;
    memcpy(sizes, session->sizes, sizeof sizes);
    for (d = 0; d < program->n_dims && status == LLMC_OK; d++)
        if (llmc_dim_of_states(program, d)) status = take_size(program, d, asked[d], &sizes[d], error);
    if (status == LLMC_OK) status = llmc_check_seen(session, sizes, error);
    for (i = 0; i < program->n_states && status == LLMC_OK; i++) {
        status = plan_move(session, i, sizes, &m, error);
        if (status == LLMC_OK && m.outer) status = reserve(session, i, &m, error);
    }
    if (status != LLMC_OK) return status; /* and nothing has changed but room */
    for (i = 0; i < program->n_states && status == LLMC_OK; i++) {
        status = plan_move(session, i, sizes, &m, error);
        if (status == LLMC_OK && m.outer) status = carry_out(session, i, &m, error);
        if (m.outer) session->begun[i] = 1;
    }
    memcpy(session->sizes, sizes, sizeof sizes);
    for (d = 0; d < program->n_dims; d++)
        if (llmc_dim_of_states(program, d) == 2) llmc_tokens_cut(session, sizes[d]);
    if (status != LLMC_OK) llmc_forget(session); /* a device that cannot copy: what is where is not known any more */
    return status;
}

llmc_status llmc_session_resize(llmc_session *session, const int64_t *sizes, llmc_error *error) {
    llmc_status status;
    if (!session || !sizes)
        return llmc_fail(error, LLMC_ERROR_ARGUMENT, NULL, "session and sizes must not be NULL");
    status = llmc_claim(session, error);
    if (status != LLMC_OK) return status;
    status = llmc_resize(session, sizes, error);
    llmc_unclaim(session);
    return status;
}
