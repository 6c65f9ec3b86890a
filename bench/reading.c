/*
 * reading.c - how fast memory is read: every byte once, by one thread or several, nothing written.
 */
#define _GNU_SOURCE

#include <immintrin.h>
#include <pthread.h>
#include <stdint.h>
#include <time.h>

#define MOST_THREADS 64
#define STEP 256 /* bytes: registers enough for loads to be in flight at all times */

static volatile uint64_t sink; /* what is stored there is not optimised away */

typedef struct worker {
    pthread_t thread;
    pthread_barrier_t *start;
    const uint8_t *at;
    long bytes;
} worker;

__attribute__((target("avx2"))) static void *work(void *argument) {
    const worker *self = (const worker *)argument;
    __m256i sum[8];
    const uint8_t *at = self->at, *end = self->at + self->bytes;
    int i;
    for (i = 0; i < 8; i++) sum[i] = _mm256_setzero_si256();
    pthread_barrier_wait(self->start);
    for (; at < end; at += STEP)
        for (i = 0; i < 8; i++)
            sum[i] = _mm256_add_epi64(sum[i], _mm256_load_si256((const __m256i *)(const void *)(at + 32 * i)));
    for (i = 1; i < 8; i++) sum[0] = _mm256_add_epi64(sum[0], sum[i]);
    sink = (uint64_t)_mm256_extract_epi64(sum[0], 0);
    return NULL;
}

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

/* Seconds in which `threads` threads, the caller among them, each read their part of data, which lies at a multiple of
 * 32; a rest of less than STEP bytes for each is left. Negative if a thread cannot be made. */
double read_all(const uint8_t *data, long bytes, int threads) {
    worker workers[MOST_THREADS];
    pthread_barrier_t start;
    double begin;
    int i;
    if (threads < 1 || threads > MOST_THREADS) return -1;
    pthread_barrier_init(&start, NULL, (unsigned)threads);
    bytes = bytes / threads / STEP * STEP;
    for (i = 0; i < threads; i++) {
        worker w = {0, &start, data + i * bytes, bytes};
        workers[i] = w;
        if (i && pthread_create(&workers[i].thread, NULL, work, &workers[i])) return -1;
    }
    begin = now();
    work(&workers[0]);
    for (i = 1; i < threads; i++) pthread_join(workers[i].thread, NULL);
    begin = now() - begin;
    pthread_barrier_destroy(&start);
    return begin;
}
