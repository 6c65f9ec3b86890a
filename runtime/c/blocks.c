/*
 * blocks.c - states in blocks that sessions share until one of them writes.
 *
 * Kernels want a state at one address. So its blocks are pages of a file in memory (memfd) that has no name, which the
 * session maps side by side: another session maps the same ones, and whoever writes to a block that others hold gets
 * another in its place, at the same address. Nothing is ever written that two hold, so no page fault copies anything: what
 * is copied is known, and counted, before a run.
 *
 *   file     ... [ a a a a . . . . ] ... [ b b . . . ] ...      never the same place twice: a hole that was is not used again
 *   session  [ a a a b b | . . . ]                              `n` blocks, then addresses for more, which are mapped already
 *
 * Where the system has no such files, or no more maps, memory comes in one piece for each state, and is copied as a whole.
 */
#define _GNU_SOURCE

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "model.h"

#ifndef BLOCK_BYTES
#define BLOCK_BYTES 16384
#endif
#ifndef LEAST_BYTES
#define LEAST_BYTES 65536 /* what is smaller is copied sooner than mapped */
#endif
#define REACH 64 /* so many times a region may double before the rest of it lies elsewhere in the file */
#define FILE_BYTES ((int64_t)1 << 62)

typedef struct block {
    int holders; /* atomic */
    int64_t at;  /* in the file */
} block;

struct llmc_blocks { /* of a region */
    size_t n, room;    /* that are there, and that there are addresses for */
    int64_t tail;      /* where in the file block 0 would be, if it lay before those from `n` on */
    size_t reach;      /* up to which block that place is ours */
    block **of;        /* [room] */
};

struct llmc_store { /* of a model */
    int file;
    size_t block;     /* bytes of one */
    int64_t next;     /* the first place in the file that nobody has had; atomic */
};

/* ---- the file ---- */

#if defined(SYS_memfd_create) && defined(FALLOC_FL_PUNCH_HOLE)
static int new_file(void) {
    const unsigned close_on_exec = 1, never_code = 8; /* MFD_CLOEXEC, MFD_NOEXEC_SEAL: since Linux 6.3 */
    long file = syscall(SYS_memfd_create, "llmc states", close_on_exec | never_code);
    return (int)(file >= 0 ? file : syscall(SYS_memfd_create, "llmc states", close_on_exec));
}

/* Found now, so that no write meets a system without memory. Any signal interrupts it. */
static int fill(const llmc_store *store, int64_t at, size_t bytes) {
    int tries = 0, failed;
    do failed = fallocate(store->file, 0, at, (off_t)bytes);
    while (failed && errno == EINTR && ++tries < 1000);
    return !failed;
}

static int give_back(const llmc_store *store, int64_t at, size_t bytes) {
    return fallocate(store->file, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, at, (off_t)bytes) == 0;
}
#else
static int new_file(void) {
    return -1;
}

static int fill(const llmc_store *store, int64_t at, size_t bytes) {
    (void)store, (void)at, (void)bytes;
    return 0;
}

static int give_back(const llmc_store *store, int64_t at, size_t bytes) {
    (void)store, (void)at, (void)bytes;
    return 0;
}
#endif

/* A bound on the size of files ends a process that passes it. */
static int may_be_large(void) {
    struct rlimit most;
    return sizeof(off_t) == 8 && sizeof(void *) == 8 && getrlimit(RLIMIT_FSIZE, &most) == 0 && most.rlim_cur == RLIM_INFINITY;
}

void llmc_store_open(llmc_model *model) {
    long page = sysconf(_SC_PAGESIZE);
    llmc_store *store;
    if (model->device != &llmc_host || page <= 0 || !may_be_large()) return;
    store = (llmc_store *)calloc(1, sizeof *store);
    if (!store) return;
    store->block = ((size_t)BLOCK_BYTES + (size_t)page - 1) / (size_t)page * (size_t)page;
    store->file = new_file();
    if (store->file >= 0 && ftruncate(store->file, (off_t)FILE_BYTES) == 0 && fill(store, 0, store->block) &&
        give_back(store, 0, store->block)) {
        model->store = store;
        return;
    }
    if (store->file >= 0) (void)close(store->file);
    free(store);
}

void llmc_store_close(llmc_model *model) {
    if (!model->store) return;
    (void)close(model->store->file);
    free(model->store);
}

/* A place for `n` blocks that nobody has had; -1: there is none. */
static int64_t place_for(llmc_store *store, size_t n) {
    int64_t bytes, at;
    if (n > SIZE_MAX / 4 / store->block) return -1;
    bytes = (int64_t)(n * store->block);
    at = __atomic_fetch_add(&store->next, bytes, __ATOMIC_RELAXED);
    return at < 0 || at > FILE_BYTES - bytes ? -1 : at;
}

/* ---- what a region counts ---- */

static int in_blocks(const llmc_model *model, const llmc_region *region, size_t bytes) {
    return model->store && region->appended && bytes >= LEAST_BYTES;
}

size_t llmc_in_blocks(const llmc_model *model, const llmc_region *region, size_t bytes) {
    size_t block;
    if (!in_blocks(model, region, bytes)) return 0;
    block = model->store->block;
    return bytes > SIZE_MAX - block ? SIZE_MAX / block * block : (bytes + block - 1) / block * block;
}

static int is_shared(const block *b) {
    return __atomic_load_n(&b->holders, __ATOMIC_ACQUIRE) > 1;
}

size_t llmc_blocks_shared(const llmc_store *store, const llmc_region *region, size_t from, size_t to) {
    const llmc_blocks *blocks = region->blocks;
    size_t i, n = 0;
    if (from >= to) return 0;
    for (i = from / store->block; i < blocks->n && i * store->block < to; i++) n += (size_t)is_shared(blocks->of[i]);
    return n * store->block;
}

/* ---- blocks ---- */

/* Blocks from..to of a region, the same places of the file from `at` on. 0: no memory, and none is there. */
static int make(const llmc_store *store, block **of, size_t from, size_t to, int64_t at) {
    size_t i;
    for (i = from; i < to; i++) {
        of[i] = (block *)malloc(sizeof **of);
        if (!of[i]) break;
        of[i]->holders = 1;
        of[i]->at = at + (int64_t)((i - from) * store->block);
    }
    if (i == to && (from == to || fill(store, at, (to - from) * store->block))) return 1;
    (void)give_back(store, at, (to - from) * store->block); /* a part may be there */
    while (i > from) free(of[--i]);
    return 0;
}

/* Let go of from..to: bytes of those that nobody holds any more. What lies side by side goes in one piece. */
static size_t leave(const llmc_store *store, block **of, size_t from, size_t to, int forked) {
    size_t i, freed = 0, run = 0;
    int64_t begin = 0;
    for (i = from; i < to; i++) {
        block *b = of[i];
        int64_t at = b->at;
        if (__atomic_sub_fetch(&b->holders, 1, __ATOMIC_ACQ_REL)) continue;
        free(b);
        freed += store->block;
        if (run && at == begin + (int64_t)run) {
            run += store->block;
            continue;
        }
        if (run && !forked) (void)give_back(store, begin, run); /* in a child of fork() they are the parent's too */
        begin = at;
        run = store->block;
    }
    if (run && !forked) (void)give_back(store, begin, run);
    return freed;
}

static int map(const llmc_store *store, unsigned char *to, int64_t at, size_t bytes) {
    return !bytes || mmap(to, bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, store->file, (off_t)at) != MAP_FAILED;
}

/* Map blocks 0..n and the addresses behind them, in as few maps as there are places. */
static int map_all(const llmc_store *store, unsigned char *to, const llmc_blocks *blocks) {
    const size_t size = store->block;
    size_t i, begin = 0;
    for (i = 1; i < blocks->n; i++) {
        if (blocks->of[i]->at == blocks->of[i - 1]->at + (int64_t)size) continue;
        if (!map(store, to + begin * size, blocks->of[begin]->at, (i - begin) * size)) return 0;
        begin = i;
    }
    if (!blocks->n) return map(store, to, blocks->tail, blocks->room * size);
    if (blocks->of[blocks->n - 1]->at + (int64_t)size == blocks->tail + (int64_t)(blocks->n * size)) /* one map with the rest */
        return map(store, to + begin * size, blocks->of[begin]->at, (blocks->room - begin) * size);
    return map(store, to + begin * size, blocks->of[begin]->at, (blocks->n - begin) * size) &&
           map(store, to + blocks->n * size, blocks->tail + (int64_t)(blocks->n * size), (blocks->room - blocks->n) * size);
}

/* Addresses for `room` blocks, with those there are mapped; NULL: no more maps. */
static unsigned char *addresses(const llmc_store *store, const llmc_blocks *blocks) {
    size_t bytes = blocks->room * store->block;
    void *at = mmap(NULL, bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (at == MAP_FAILED) return NULL;
    if (map_all(store, (unsigned char *)at, blocks)) return (unsigned char *)at;
    (void)munmap(at, bytes);
    return NULL;
}

static void drop(llmc_blocks *blocks) {
    if (blocks) free(blocks->of);
    free(blocks);
}

/* Of a region: the first `kept` blocks of `from`, which count no holder more yet, and addresses for twice `n`. */
static llmc_blocks *new_blocks(llmc_store *store, const llmc_blocks *from, size_t kept, size_t n) {
    llmc_blocks *blocks = n > SIZE_MAX / 1024 / REACH / store->block ? NULL : (llmc_blocks *)calloc(1, sizeof *blocks);
    int64_t at = 0;
    if (!blocks) return NULL;
    blocks->n = kept;
    blocks->room = 2 * n;
    if (from && from->reach >= blocks->room) {
        blocks->reach = from->reach;
        blocks->tail = from->tail;
    } else {
        blocks->reach = REACH * blocks->room;
        blocks->tail = at = place_for(store, blocks->reach);
    }
    blocks->of = at < 0 ? NULL : (block **)malloc(blocks->room * sizeof *blocks->of);
    if (!blocks->of) {
        drop(blocks);
        return NULL;
    }
    if (kept) memcpy(blocks->of, from->of, kept * sizeof *blocks->of);
    return blocks;
}

static int append(const llmc_store *store, llmc_blocks *blocks, size_t n) {
    if (!make(store, blocks->of, blocks->n, n, blocks->tail + (int64_t)(blocks->n * store->block))) return 0;
    blocks->n = n;
    return 1;
}

/* Other addresses, for twice as many blocks as are wanted. */
static int regrow(llmc_store *store, llmc_region *region, size_t n) {
    llmc_blocks *old = region->blocks, *more = new_blocks(store, old, old ? old->n : 0, n);
    unsigned char *at = more ? addresses(store, more) : NULL;
    if (!at || !append(store, more, n)) {
        if (at) (void)munmap(at, more->room * store->block);
        drop(more);
        return 0;
    }
    if (old) (void)munmap(region->at, old->room * store->block);
    drop(old);
    region->at = at;
    region->blocks = more;
    return 1;
}

int llmc_blocks_grow(llmc_session *session, llmc_region *region, size_t bytes, size_t keep) {
    llmc_store *store = session->model->store;
    llmc_region old = *region;
    size_t n;
    if (!old.blocks && !in_blocks(session->model, region, bytes)) return 0;
    n = (bytes + store->block - 1) / store->block;
    if (!(old.blocks && n <= old.blocks->room ? append(store, old.blocks, n) : regrow(store, region, n))) return 0;
    region->bytes = n * store->block;
    if (old.blocks) return 1;
    if (keep) memcpy(region->at, old.at, keep);
    if (old.at) session->model->device->release(session, &old, 0);
    region->block = NULL;
    return 1;
}

size_t llmc_blocks_release(const llmc_store *store, llmc_region *region, int forked) {
    llmc_blocks *blocks = region->blocks;
    size_t freed;
    (void)munmap(region->at, blocks->room * store->block);
    freed = leave(store, blocks->of, 0, blocks->n, forked);
    drop(blocks);
    region->blocks = NULL;
    return freed;
}

int llmc_blocks_share(llmc_store *store, llmc_region *to, const llmc_region *from, size_t bytes) {
    const llmc_blocks *theirs = from->blocks;
    size_t i, n = (bytes + store->block - 1) / store->block;
    llmc_blocks *blocks;
    if (n > theirs->n) n = theirs->n;
    blocks = new_blocks(store, NULL, 0, n + 1);
    if (!blocks) return 0;
    memcpy(blocks->of, theirs->of, n * sizeof *blocks->of);
    blocks->n = n;
    to->at = addresses(store, blocks);
    if (!to->at) {
        drop(blocks);
        return 0;
    }
    for (i = 0; i < n; i++) __atomic_add_fetch(&blocks->of[i]->holders, 1, __ATOMIC_RELAXED);
    to->blocks = blocks;
    to->bytes = n * store->block;
    return 1;
}

/* Map `bytes` of the file from `place` on instead of what is there, of which the first `keep` bytes go along. */
static int map_instead(const llmc_store *store, unsigned char *at, int64_t place, size_t bytes, size_t keep) {
    if (keep) {
        void *copy = mmap(NULL, keep, PROT_READ | PROT_WRITE, MAP_SHARED, store->file, (off_t)place);
        if (copy == MAP_FAILED) return 0;
        memcpy(copy, at, keep);
        (void)munmap(copy, keep);
    }
    return map(store, at, place, bytes);
}

/* New blocks for from..to, with the first `keep` bytes of what these hold. The last ones take the addresses behind them with
 * them, so that what is appended lies in the same map. */
static int replace(llmc_store *store, llmc_region *region, size_t from, size_t to, size_t keep, size_t *freed) {
    llmc_blocks *blocks = region->blocks;
    const size_t size = store->block, end = to == blocks->n ? blocks->room : to;
    int64_t at = place_for(store, end - from);
    block **fresh = at < 0 ? NULL : (block **)malloc((to - from) * sizeof *fresh);
    int done = fresh && make(store, fresh, 0, to - from, at);
    if (done && !map_instead(store, region->at + from * size, at, (end - from) * size, keep)) {
        (void)leave(store, fresh, 0, to - from, 0);
        done = 0;
    }
    if (done) {
        *freed += leave(store, blocks->of, from, to, 0);
        memcpy(blocks->of + from, fresh, (to - from) * sizeof *fresh);
    }
    if (done && to == blocks->n) {
        blocks->tail = at - (int64_t)(from * size);
        blocks->reach = blocks->room;
    }
    free(fresh);
    return done;
}

int llmc_blocks_own(llmc_store *store, llmc_region *region, size_t from, size_t to, size_t keep, size_t *made, size_t *freed) {
    const llmc_blocks *blocks = region->blocks;
    const size_t size = store->block;
    size_t i, end = (to + size - 1) / size;
    *made = *freed = 0;
    if (from >= to) return 1;
    if (end > blocks->n) end = blocks->n;
    for (i = from / size; i < end; i++) {
        size_t first = i, kept;
        while (i < end && is_shared(blocks->of[i])) i++;
        if (i == first) continue;
        kept = keep <= first * size ? 0 : keep - first * size;
        if (kept > (i - first) * size) kept = (i - first) * size;
        if (!replace(store, region, first, i, kept, freed)) return 0;
        *made += (i - first) * size;
    }
    return 1;
}
