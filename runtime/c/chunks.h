/*
 * chunks.h - how pool.c cuts a job into chunks. Internal, included there alone.
 */
#ifndef LLMC_CHUNKS_H
#define LLMC_CHUNKS_H

#include <stdint.h>

#define SMALL_CHUNK 10000     /* cost of a chunk at least */
#define CHUNKS_PER_THREAD 8   /* the last chunk to end keeps the others waiting for 1/8 of a thread's share at most */
#define STRETCH 0xffffu    /* chunks of a stretch at most */

/* 1: a thread's chunks get shorter, 1/2 1/4 1/8 1/16 1/16 of its share, instead of eight equal ones: fewer hands over,
 * and the last chunk to end keeps the others waiting for half as long. */
#ifndef LLMC_POOL_TAPER
#define LLMC_POOL_TAPER 0
#endif
#define FINEST 16 /* parts of a share in the shortest chunk, a power of two */

typedef struct cutting {
    int64_t chunk;          /* items in a chunk; with TAPER the number of finest parts of a share */
    uint32_t chunks, first; /* all, and of the first stretch */
} cutting;

#if LLMC_POOL_TAPER
/* The items of chunk `number`. Each stretch is worked on in rounds, one chunk for each of its threads in every round;
 * of the `parts` that a share has, half of what is left goes in a round, and the last part in one more. */
static void cut_chunk(int64_t items, int64_t parts, int threads, int64_t number, uint32_t first, int64_t range[2]) {
    const int64_t early = (threads + 1) / 2, second = number >= (int64_t)first;
    const int64_t team = second ? threads - early : early, k = number - (second ? (int64_t)first : 0);
    const int64_t round = k / team, left = parts >> round, length = left > 1 ? left / 2 : 1; /* parts of a share */
    const int64_t at = (second ? early * parts : 0) + team * (parts - left) + (k - round * team) * length;
    const int64_t all = parts * threads; /* at most FINEST times 1024: no product below overflows */
    const int64_t whole = items / all, rest = items % all;
    range[0] = at * whole + at * rest / all;
    range[1] = (at + length) * whole + (at + length) * rest / all;
}
#else
static void cut_chunk(int64_t items, int64_t chunk, int threads, int64_t number, uint32_t first, int64_t range[2]) {
    (void)threads, (void)first;
    range[0] = number * chunk;
    range[1] = items - range[0] < chunk ? items : range[0] + chunk;
}
#endif

#if !LLMC_POOL_TAPER
/* Items in a chunk: enough work each, and a few chunks for each thread. */
static int64_t chunk_length(int64_t items, int64_t cost, int threads) {
    int64_t by_count = items / ((int64_t)threads * CHUNKS_PER_THREAD), by_cost = SMALL_CHUNK / cost;
    int64_t length = by_count > by_cost ? by_count : by_cost;
    int64_t least = (items - 1) / STRETCH + 1; /* so that a ticket can count them */
    return length > least ? length : least;
}
#endif

/* How a job is cut. */
static cutting plan(int64_t items, int64_t cost, int threads) {
    cutting c;
#if LLMC_POOL_TAPER
    int64_t parts = FINEST, rounds = 1, share = items / threads, p;
    while (parts > 1 && (parts > share || share / parts < SMALL_CHUNK / cost)) parts /= 2;
    for (p = parts; p > 1; p /= 2) rounds++;
    c.chunk = parts;
    c.first = (uint32_t)(rounds * ((threads + 1) / 2));
    c.chunks = (uint32_t)(rounds * threads);
#else
    int64_t chunk = chunk_length(items, cost, threads);
    uint32_t chunks = (uint32_t)((items + chunk - 1) / chunk);
    c.chunk = chunk;
    c.first = (chunks + 1) / 2;
    c.chunks = chunks;
#endif
    return c;
}

#endif
