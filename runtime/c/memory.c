/*
 * memory.c - what a session holds, within the bounds that it and its model were given.
 */
#include <stdlib.h>

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

/* 1: the memory is no one else's, and the region's again. */
static int leave(llmc_region *region) {
    int others = region->holders ? __atomic_sub_fetch(region->holders, 1, __ATOMIC_ACQ_REL) : 0;
    if (!others) free(region->holders);
    region->holders = NULL;
    return !others;
}

void llmc_release(llmc_session *session, const llmc_device *device, llmc_region *region, int forked) {
    if (!region->at) return;
    refund(session, region->bytes);
    if (leave(region)) device->release(session, region, forked);
    region->at = NULL;
    region->block = NULL;
    region->bytes = 0;
}

llmc_status llmc_share(llmc_session *session, llmc_region *region, llmc_region *theirs, llmc_error *error) {
    llmc_status status;
    if (!theirs->holders) {
        theirs->holders = (int *)malloc(sizeof *theirs->holders);
        if (!theirs->holders) return llmc_fail_memory(error, sizeof *theirs->holders);
        *theirs->holders = 1;
    }
    status = charge(session, theirs->bytes, error);
    if (status != LLMC_OK) return status;
    __atomic_add_fetch(theirs->holders, 1, __ATOMIC_RELAXED);
    *region = *theirs;
    return LLMC_OK;
}

/* Memory of its own, unless it is already. The others may write to theirs as soon as they are alone: the copy is done. */
static llmc_status own(llmc_session *session, const llmc_device *device, llmc_region *region, size_t bytes, size_t keep,
                       llmc_error *error) {
    llmc_region fresh = {NULL, NULL, 0, NULL};
    llmc_status status;
    if (__atomic_load_n(region->holders, __ATOMIC_ACQUIRE) == 1) {
        (void)leave(region);
        return LLMC_OK;
    }
    status = device->grow(session, &fresh, bytes, 0, error);
    if (status != LLMC_OK) return status;
    if (keep) status = device->copy(session, fresh.at, region->at, keep, error);
    if (status == LLMC_OK) status = device->fetch(session, NULL, NULL, 0, error);
    if (status != LLMC_OK) {
        device->release(session, &fresh, 0);
        return status;
    }
    if (leave(region)) device->release(session, region, 0); /* the others have left meanwhile */
    *region = fresh;
    return LLMC_OK;
}

llmc_status llmc_reserve(llmc_session *session, const llmc_device *device, llmc_region *region, size_t bytes,
                         size_t keep, llmc_error *error) {
    size_t all = target(region, bytes, session->generous), before = region->bytes;
    llmc_status status;
    if (all == before) return LLMC_OK;
    status = charge(session, all - before, error);
    if (status != LLMC_OK) return status;
    if (region->holders)
        status = own(session, device, region, all, keep, error);
    if (status == LLMC_OK && region->bytes < all) status = device->grow(session, region, all, keep, error);
    if (region->bytes < all) refund(session, all - region->bytes);
    return status;
}

llmc_status llmc_unshare(llmc_session *session, const llmc_device *device, llmc_region *region, size_t keep,
                         llmc_error *error) {
    return region->holders ? own(session, device, region, region->bytes, keep, error) : LLMC_OK;
}
