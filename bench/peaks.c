/*
 * peaks.c - what the processor does at most: multiply-adds of three kinds, byte products, a memory stream.
 *
 * A loop has enough independent chains to hide the latency of its instruction, and touches no memory. Every kind is
 * written with target attributes, so the file compiles anywhere on x86-64; the caller must know what the CPU has.
 */
#define _GNU_SOURCE

#include <immintrin.h>
#include <pthread.h>
#include <stdint.h>
#include <string.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#define MOST_THREADS 64
#define STREAM_FLOATS (8 << 20) /* in all threads' parts of each of three arrays of 32 MB */

enum { FMA256, FMA512, MADD256, DOT512, AMX, STREAM, KINDS };

static volatile int sink; /* what is stored there is not optimised away */
static float stream_a[STREAM_FLOATS], stream_b[STREAM_FLOATS], stream_c[STREAM_FLOATS];

/* Operations of one round of each kind; a multiply-add is two. Of the stream: bytes. */
double peak_operations(int kind) {
    static const double each[KINDS] = {12 * 8 * 2, 24 * 16 * 2, 6 * 16 * 2, 24 * 64 * 2, 4 * 16 * 16 * 64 * 2,
                                       3 * sizeof(float) * STREAM_FLOATS};
    return kind >= 0 && kind < KINDS ? each[kind] : 0;
}

/* Whether the kernel lets this process use the tile registers; it must be asked once. */
int peak_allow_amx(void) {
    return syscall(SYS_arch_prctl, 0x1023 /* ARCH_REQ_XCOMP_PERM */, 18 /* tile data */) == 0;
}

__attribute__((target("avx2,fma"))) static void run_fma256(long rounds) {
    __m256 acc[12], f = _mm256_set1_ps(0.999f);
    int i;
    for (i = 0; i < 12; i++) acc[i] = _mm256_set1_ps((float)i);
    while (rounds--) {
#pragma clang loop unroll(full)
        for (i = 0; i < 12; i++) acc[i] = _mm256_fmadd_ps(acc[i], f, f);
    }
    for (i = 1; i < 12; i++) acc[0] = _mm256_add_ps(acc[0], acc[i]);
    sink = (int)_mm256_cvtss_f32(acc[0]);
}

__attribute__((target("avx512f"))) static void run_fma512(long rounds) {
    __m512 acc[24], f = _mm512_set1_ps(0.999f);
    int i;
    for (i = 0; i < 24; i++) acc[i] = _mm512_set1_ps((float)i);
    while (rounds--) {
#pragma clang loop unroll(full)
        for (i = 0; i < 24; i++) acc[i] = _mm512_fmadd_ps(acc[i], f, f);
    }
    for (i = 1; i < 24; i++) acc[0] = _mm512_add_ps(acc[0], acc[i]);
    sink = (int)_mm512_cvtss_f32(acc[0]);
}

/* Exact byte products without VNNI: widened to 16 bits, multiplied and added in pairs, added. */
__attribute__((target("avx2"))) static void run_madd256(long rounds) {
    __m256i acc[6], a[6], b = _mm256_set1_epi16(3);
    int i;
    for (i = 0; i < 6; i++) acc[i] = a[i] = _mm256_set1_epi16((short)i);
    while (rounds--) {
#pragma clang loop unroll(full)
        for (i = 0; i < 6; i++) {
            __asm__ volatile("" : "+x"(a[i])); /* or the product would be taken out of the loop */
            acc[i] = _mm256_add_epi32(acc[i], _mm256_madd_epi16(a[i], b));
        }
    }
    for (i = 1; i < 6; i++) acc[0] = _mm256_add_epi32(acc[0], acc[i]);
    sink = _mm256_extract_epi32(acc[0], 0);
}

__attribute__((target("avx512f,avx512vnni"))) static void run_dot512(long rounds) {
    __m512i acc[24], a = _mm512_set1_epi8(3), b = _mm512_set1_epi8(5);
    int i;
    for (i = 0; i < 24; i++) acc[i] = _mm512_set1_epi32(i);
    while (rounds--) {
#pragma clang loop unroll(full)
        for (i = 0; i < 24; i++) {
            acc[i] = _mm512_dpbusd_epi32(acc[i], a, b);
            __asm__ volatile("" : "+v"(acc[i])); /* or it would be seen to add a constant */
        }
    }
    for (i = 1; i < 24; i++) acc[0] = _mm512_add_epi32(acc[0], acc[i]);
    sink = _mm512_cvtsi512_si32(acc[0]);
}

/* 2 x 2 tiles of sums of 2 + 2 tiles of bytes, as a product would hold them. */
__attribute__((target("amx-tile,amx-int8"))) static void run_amx(long rounds) {
    struct {
        uint8_t palette, start_row, zero[14];
        uint16_t bytes_in_row[16];
        uint8_t rows[16];
    } shape;
    static int8_t data[4 * 1024];
    int i;
    memset(&shape, 0, sizeof shape);
    shape.palette = 1;
    for (i = 0; i < 8; i++) {
        shape.bytes_in_row[i] = 64;
        shape.rows[i] = 16;
    }
    _tile_loadconfig(&shape);
    _tile_zero(0); _tile_zero(1); _tile_zero(2); _tile_zero(3);
    /* Not zeros: some processors multiply those faster. */
    for (i = 0; i < (int)sizeof data; i++) data[i] = (int8_t)(i * 37 + (i >> 5));
    _tile_loadd(4, data, 64);
    _tile_loadd(5, data + 1024, 64);
    _tile_loadd(6, data + 2048, 64);
    _tile_loadd(7, data + 3072, 64);
    while (rounds--) {
        _tile_dpbssd(0, 4, 6);
        _tile_dpbssd(1, 4, 7);
        _tile_dpbssd(2, 5, 6);
        _tile_dpbssd(3, 5, 7);
    }
    _tile_release();
}

/* a = b + 3 c over one part, the triad of J. McCalpin's STREAM. */
static void run_stream(long rounds, int part, int parts) {
    long begin = (long)STREAM_FLOATS / parts * part, end = begin + STREAM_FLOATS / parts, i;
    while (rounds--) {
        for (i = begin; i < end; i++) stream_a[i] = stream_b[i] + 3.0f * stream_c[i];
        sink = (int)stream_a[begin];
    }
}

typedef struct worker {
    pthread_t thread;
    pthread_barrier_t *start;
    int kind, index, threads;
    long rounds;
} worker;

static void *work(void *argument) {
    const worker *self = (const worker *)argument;
    pthread_barrier_wait(self->start);
    switch (self->kind) {
        case FMA256: run_fma256(self->rounds); break;
        case FMA512: run_fma512(self->rounds); break;
        case MADD256: run_madd256(self->rounds); break;
        case DOT512: run_dot512(self->rounds); break;
        case AMX: run_amx(self->rounds); break;
        default: run_stream(self->rounds, self->index, self->threads);
    }
    return NULL;
}

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

/* Seconds in which `threads` threads, the caller among them, each do `rounds` rounds (of the stream: share them);
 * negative if a thread cannot be made. */
double peak_run(int kind, int threads, long rounds) {
    worker workers[MOST_THREADS];
    pthread_barrier_t start;
    double begin;
    int i;
    if (kind < 0 || kind >= KINDS || threads < 1 || threads > MOST_THREADS) return -1;
    pthread_barrier_init(&start, NULL, (unsigned)threads);
    for (i = 0; i < threads; i++) {
        worker w = {0, &start, kind, i, threads, rounds};
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
