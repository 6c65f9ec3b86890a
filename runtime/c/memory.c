/*
 * memory.c - what a session holds, within the bounds that it and its model were given.
 */
#include <stdlib.h>

#include "model.h"

size_t llmc_held_for(size_t bytes) {
    return bytes > SIZE_MAX - 256 ? SIZE_MAX : (bytes + 63) / 64 * 64 + 64; /* never empty */
}

/* What a region that must hold `bytes` shall hold; half more than now at least, where there is room for that. Blocks
 * grow without a copy, so they hold what they must. */
static size_t target(const llmc_model *model, const llmc_region *region, size_t bytes, int generous) {
    size_t least = llmc_held_for(bytes), more = llmc_held_for(region->bytes + region->bytes / 2), whole;
    if (least <= region->bytes) return region->bytes;
    if (generous && more > least && !llmc_in_blocks(model, region, least)) least = more;
    whole = llmc_in_blocks(model, region, least);
    return whole ? whole : least;
}

size_t llmc_growth_of(const llmc_model *model, const llmc_region *region, size_t bytes, int generous) {
    return target(model, region, bytes, generous) - region->bytes;
}

size_t llmc_shared_in(const llmc_model *model, const llmc_region *region, size_t from, size_t to) {
    if (region->blocks) return llmc_blocks_shared(model->store, region, from, to);
    return region->holders && from < to && __atomic_load_n(region->holders, __ATOMIC_ACQUIRE) > 1 ? region->bytes : 0;
}

static llmc_status refuse(const char *whose, uint64_t bytes, uint64_t bound, llmc_error *error) {
    return llmc_fail(error, LLMC_ERROR_MEMORY, "use smaller inputs, a shorter sequence, or a larger max_memory",
                     "%s would hold %llu bytes, max_memory is %llu", whose, (unsigned long long)bytes,
                     (unsigned long long)bound);
}

/* So many bytes more for the session, and for all sessions of the model, which may take memory at the same time. */
static llmc_status charge(llmc_session *session, size_t bytes, size_t of_model, llmc_error *error) {
    llmc_model *model = session->model;
    uint64_t all;
    if (session->max_memory && bytes > session->max_memory - session->held)
        return refuse("the session", session->held + bytes, session->max_memory, error);
    all = __atomic_add_fetch(&model->held, of_model, __ATOMIC_RELAXED);
    if (model->max_memory && (all > model->max_memory || all < of_model)) {
        __atomic_sub_fetch(&model->held, of_model, __ATOMIC_RELAXED);
        return refuse("the sessions of the model", all, model->max_memory, error);
    }
    session->held += bytes;
    return LLMC_OK;
}

static void refund(llmc_session *session, size_t bytes, size_t of_model) {
    session->held -= bytes;
    __atomic_sub_fetch(&session->model->held, of_model, __ATOMIC_RELAXED);
}

llmc_status llmc_check_room(llmc_session *session, size_t bytes, size_t copies, llmc_error *error) {
    size_t both = copies > SIZE_MAX - bytes ? SIZE_MAX : bytes + copies;
    llmc_status status = charge(session, bytes, both, error);
    if (status == LLMC_OK) refund(session, bytes, both);
    return status;
}

/* 1: the memory is no one else's, and the region's again. */
static int leave(llmc_region *region) {
    int others = region->holders ? __atomic_sub_fetch(region->holders, 1, __ATOMIC_ACQ_REL) : 0;
    if (!others) free(region->holders);
    region->holders = NULL;
    return !others;
}

/* Give back what of a region nobody else holds. */
static void let_go(llmc_session *session, const llmc_device *device, llmc_region *region, int forked) {
    if (region->blocks) {
        refund(session, 0, llmc_blocks_release(session->model->store, region, forked));
    } else if (leave(region)) {
        device->release(session, region, forked);
        refund(session, 0, region->bytes);
    }
}

void llmc_release(llmc_session *session, const llmc_device *device, llmc_region *region, int forked) {
    if (!region->at) return;
    let_go(session, device, region, forked);
    refund(session, region->bytes, 0);
    region->at = NULL;
    region->block = NULL;
    region->bytes = 0;
}

/* Other memory, in one piece where there are no blocks, with the first `keep` bytes of what the region had. What it is to have beyond that is charged
 * already. Others may write to the old one as soon as they are alone: the copy is done. */
static llmc_status move(llmc_session *session, const llmc_device *device, llmc_region *region, size_t bytes, size_t keep,
                        llmc_error *error) {
    llmc_region fresh = {NULL, NULL, 0, NULL, NULL, region->appended};
    llmc_status status = charge(session, 0, region->bytes, error);
    if (status != LLMC_OK) return status;
    if (!llmc_blocks_grow(session, &fresh, bytes, 0)) status = device->grow(session, &fresh, bytes, 0, error);
    if (status == LLMC_OK && keep) status = device->copy(session, fresh.at, region->at, keep, error);
    if (status == LLMC_OK) status = device->fetch(session, NULL, NULL, 0, error);
    if (status != LLMC_OK) {
        if (fresh.blocks)
            (void)llmc_blocks_release(session->model->store, &fresh, 0);
        else if (fresh.at)
            device->release(session, &fresh, 0);
        refund(session, 0, region->bytes);
        return status;
    }
    let_go(session, device, region, 0);
    *region = fresh;
    return LLMC_OK;
}

/* Memory in one piece: of its own, unless it is already. */
static llmc_status own(llmc_session *session, const llmc_device *device, llmc_region *region, size_t bytes, size_t keep,
                       llmc_error *error) {
    if (__atomic_load_n(region->holders, __ATOMIC_ACQUIRE) > 1) return move(session, device, region, bytes, keep, error);
    (void)leave(region);
    return LLMC_OK;
}

static llmc_status enlarge(llmc_session *session, const llmc_device *device, llmc_region *region, size_t bytes,
                           size_t keep, llmc_error *error) {
    if (llmc_blocks_grow(session, region, bytes, keep)) return LLMC_OK;
    return region->blocks ? move(session, device, region, bytes, keep, error)
                          : device->grow(session, region, bytes, keep, error);
}

llmc_status llmc_reserve(llmc_session *session, const llmc_device *device, llmc_region *region, size_t bytes,
                         size_t keep, llmc_error *error) {
    size_t all = target(session->model, region, bytes, session->generous), before = region->bytes;
    llmc_status status;
    if (all == before) return LLMC_OK;
    status = charge(session, all - before, all - before, error);
    if (status != LLMC_OK) return status;
    if (region->holders) status = own(session, device, region, all, keep, error);
    if (status == LLMC_OK && region->bytes < all) status = enlarge(session, device, region, all, keep, error);
    if (region->bytes < all) refund(session, all - region->bytes, all - region->bytes);
    return status;
}

/* A system that has no more maps may have memory all the same. */
static llmc_status copy_of(llmc_session *session, llmc_region *region, const llmc_region *theirs, size_t bytes,
                           llmc_error *error) {
    const llmc_device *device = session->model->device;
    llmc_status status = llmc_reserve(session, device, region, bytes, 0, error);
    return status == LLMC_OK ? device->copy(session, region->at, theirs->at, bytes, error) : status;
}

static llmc_status share_blocks(llmc_session *session, llmc_region *region, const llmc_region *theirs, size_t bytes,
                                llmc_error *error) {
    size_t all = llmc_in_blocks(session->model, theirs, llmc_held_for(bytes));
    llmc_status status;
    if (!all || all > theirs->bytes) all = theirs->bytes;
    status = charge(session, all, 0, error);
    if (status != LLMC_OK || llmc_blocks_share(session->model->store, region, theirs, all)) return status;
    refund(session, all, 0);
    return copy_of(session, region, theirs, bytes, error);
}

llmc_status llmc_share(llmc_session *session, llmc_region *region, llmc_region *theirs, size_t bytes, llmc_error *error) {
    llmc_status status;
    if (theirs->blocks) return share_blocks(session, region, theirs, bytes, error);
    if (!theirs->holders) {
        theirs->holders = (int *)malloc(sizeof *theirs->holders);
        if (!theirs->holders) return llmc_fail_memory(error, sizeof *theirs->holders);
        *theirs->holders = 1;
    }
    status = charge(session, theirs->bytes, 0, error);
    if (status != LLMC_OK) return status;
    __atomic_add_fetch(theirs->holders, 1, __ATOMIC_RELAXED);
    *region = *theirs;
    return LLMC_OK;
}

llmc_status llmc_unshare(llmc_session *session, const llmc_device *device, llmc_region *region, size_t from, size_t to,
                         size_t keep, llmc_error *error) {
    size_t all = llmc_shared_in(session->model, region, from, to), made, freed;
    llmc_status status;
    int done;
    if (!region->blocks) return region->holders ? own(session, device, region, region->bytes, keep, error) : LLMC_OK;
    if (!all) return LLMC_OK;
    status = charge(session, 0, all, error);
    if (status != LLMC_OK) return status;
    done = llmc_blocks_own(session->model->store, region, from, to, keep, &made, &freed);
    refund(session, 0, all - made + freed);
    return done ? LLMC_OK : move(session, device, region, region->bytes, keep, error);
}
