/*
 * memory.c - what a session holds, within the bounds that it and its model were given.
 */
#include "model.h"

size_t llmc_held_for(size_t bytes) {
    return bytes > SIZE_MAX - 256 ? SIZE_MAX : (bytes + 63) / 64 * 64 + 64; /* never empty */
}

static llmc_status refuse(const char *whose, uint64_t bytes, uint64_t bound, llmc_error *error) {
    return llmc_fail(error, LLMC_ERROR_MEMORY, "use smaller inputs, a shorter sequence, or a larger max_memory",
                     "%s would hold %llu bytes, max_memory is %llu", whose, (unsigned long long)bytes,
                     (unsigned long long)bound);
}

/* Other sessions of the model may take memory at the same time. */
static llmc_status charge(llmc_session *session, size_t bytes, llmc_error *error) {
    llmc_model *model = session->model;
    uint64_t all;
    if (session->max_memory && bytes > session->max_memory - session->held)
        return refuse("the session", session->held + bytes, session->max_memory, error);
    all = __atomic_add_fetch(&model->held, bytes, __ATOMIC_RELAXED);
    if (model->max_memory && (all > model->max_memory || all < bytes)) {
        __atomic_sub_fetch(&model->held, bytes, __ATOMIC_RELAXED);
        return refuse("the sessions of the model", all, model->max_memory, error);
    }
    session->held += bytes;
    return LLMC_OK;
}

static void refund(llmc_session *session, size_t bytes) {
    session->held -= bytes;
    __atomic_sub_fetch(&session->model->held, bytes, __ATOMIC_RELAXED);
}

static llmc_status grow(llmc_session *session, const llmc_device *device, llmc_region *region, size_t bytes,
                        size_t keep, llmc_error *error) {
    size_t more = bytes - region->bytes;
    llmc_status status = charge(session, more, error);
    if (status != LLMC_OK) return status;
    status = device->grow(session, region, bytes, keep, error);
    if (region->bytes < bytes) refund(session, bytes - region->bytes);
    return status;
}

llmc_status llmc_reserve(llmc_session *session, const llmc_device *device, llmc_region *region, size_t bytes,
                         size_t keep, llmc_error *error) {
    size_t least = llmc_held_for(bytes), half_more = llmc_held_for(region->bytes + region->bytes / 2);
    if (least <= region->bytes) return LLMC_OK;
    if (session->model->program->n_states && least < half_more) /* a sequence grows again and again */
        if (grow(session, device, region, half_more, keep, NULL) == LLMC_OK) return LLMC_OK;
    return grow(session, device, region, least, keep, error);
}

void llmc_release(llmc_session *session, const llmc_device *device, llmc_region *region, int forked) {
    if (!region->at) return;
    refund(session, region->bytes);
    device->release(session, region, forked);
    region->at = NULL;
    region->block = NULL;
    region->bytes = 0;
}
