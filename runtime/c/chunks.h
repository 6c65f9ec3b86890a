/*
 * chunks.h - how pool.c cuts a job into chunks. Internal, included there alone.
 */
#ifndef LLMC_CHUNKS_H
#define LLMC_CHUNKS_H

#include <stdint.h>

#define SMALL_CHUNK 10000     /* cost of a chunk at least */
#define CHUNKS_PER_THREAD 8   /* the last chunk to end keeps the others waiting for 1/8 of a thread's share at most */

typedef struct cutting {
    int64_t chunk;          /* items in a chunk */
    uint32_t chunks, first; /* all, and of the first stretch */
} cutting;

/* The items of chunk `number`. */
static void cut_chunk(int64_t items, int64_t chunk, int64_t number, int64_t range[2]) {
    range[0] = number * chunk;
    range[1] = items - range[0] < chunk ? items : range[0] + chunk;
}

/* Items in a chunk: enough work each, and a few chunks for each thread. */
static int64_t chunk_length(int64_t items, int64_t cost, int threads) {
    int64_t by_count = items / ((int64_t)threads * CHUNKS_PER_THREAD), by_cost = SMALL_CHUNK / cost;
    int64_t length = by_count > by_cost ? by_count : by_cost;
    return length > 1 ? length : 1;
}

/* How a job is cut. */
static cutting plan(int64_t items, int64_t cost, int threads) {
    cutting c;
    c.chunk = chunk_length(items, cost, threads);
    c.chunks = (uint32_t)((items + c.chunk - 1) / c.chunk);
    c.first = (c.chunks + 1) / 2;
    return c;
}

#endif
