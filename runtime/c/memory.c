/*
 * memory.c - what a session holds, within the bounds that it and its model were given.
 */
#include "model.h"

size_t llmc_held_for(size_t bytes) {
    return bytes > SIZE_MAX - 256 ? SIZE_MAX : (bytes + 63) / 64 * 64 + 64; /* never empty */
}

/* What a region that must hold `bytes` shall hold; half more than now at least, where there is room for that. */
static size_t target(const llmc_region *region, size_t bytes, int generous) {
    size_t least = llmc_held_for(bytes), more = llmc_held_for(region->bytes + region->bytes / 2);
    if (least <= region->bytes) return region->bytes;
    return generous && more > least ? more : least;
}

size_t llmc_growth_of(const llmc_region *region, size_t bytes, int generous) {
    return target(region, bytes, generous) - region->bytes;
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

llmc_status llmc_check_room(llmc_session *session, size_t bytes, llmc_error *error) {
    llmc_status status = charge(session, bytes, error);
    if (status == LLMC_OK) refund(session, bytes);
    return status;
}

llmc_status llmc_reserve(llmc_session *session, const llmc_device *device, llmc_region *region, size_t bytes,
                         size_t keep, llmc_error *error) {
    size_t all = target(region, bytes, session->generous);
    llmc_status status;
    if (all == region->bytes) return LLMC_OK;
    status = charge(session, all - region->bytes, error);
    if (status != LLMC_OK) return status;
    status = device->grow(session, region, all, keep, error);
    if (region->bytes < all) refund(session, all - region->bytes);
    return status;
}

void llmc_release(llmc_session *session, const llmc_device *device, llmc_region *region, int forked) {
    if (!region->at) return;
    refund(session, region->bytes);
    device->release(session, region, forked);
    region->at = NULL;
    region->block = NULL;
    region->bytes = 0;
}
