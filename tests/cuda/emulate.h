/*
 * emulate.h - enough of CUDA C++ to run generated kernels on the CPU, one block after the other.
 *
 * The threads of a block are fibers that take turns: each runs until it waits, and goes on when all have come to the same
 * place. Every other round goes backwards, so that a missing barrier shows. A barrier that not all threads
 * reach ends the process. gpu_lab.py makes `__shared__` static: there is one block at a time.
 */
#pragma once

#include <immintrin.h>
#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <ucontext.h>

#define __global__
#define __launch_bounds__(threads)
#define CUDART_INF_F __builtin_inff()
#define CUDART_NAN_F __builtin_nanf("")
#define CUDART_INF __builtin_inf()
#define CUDART_NAN __builtin_nan("")

typedef unsigned char uchar;
typedef unsigned int uint;

struct emu_place {
    unsigned x, y, z;
};
static emu_place threadIdx, blockIdx;

/* --- numbers */

struct alignas(16) float4 {
    float x, y, z, w;
};
struct alignas(16) int4 {
    int x, y, z, w;
};
struct alignas(16) longlong4 {
    long long x, y, z, w;
};
static inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }
static inline int4 make_int4(int x, int y, int z, int w) { return {x, y, z, w}; }
static inline longlong4 make_longlong4(long long x, long long y, long long z, long long w) { return {x, y, z, w}; }

static inline int64_t min(int64_t a, int64_t b) { return a < b ? a : b; }
static inline int64_t max(int64_t a, int64_t b) { return a > b ? a : b; }
static inline int min(int a, int b) { return a < b ? a : b; }
static inline int max(int a, int b) { return a > b ? a : b; }

struct half {
    uint16_t bits;
    half() = default;
    half(float value) : bits((uint16_t)_cvtss_sh(value, _MM_FROUND_TO_NEAREST_INT)) {}
    operator float() const { return _cvtsh_ss(bits); }
};
static inline half __float2half_rn(float value) { return half(value); }

static inline int __dp4a(int a, int b, int c) {
    for (int i = 0; i < 4; i++) c += (int)(int8_t)(a >> 8 * i) * (int)(int8_t)(b >> 8 * i);
    return c;
}

/* --- fibers */

#define EMU_THREADS 1024
#define EMU_STACK (256 * 1024)

struct emu_fiber {
    ucontext_t context;
    const void *waits; /* at which kind of barrier; NULL: it runs or is done */
    int done;
};

static emu_fiber emu_fibers[EMU_THREADS];
static ucontext_t emu_scheduler;
static char *emu_stacks;
static unsigned emu_now, emu_size;
static uint64_t emu_slots[EMU_THREADS];
static void (*emu_body)();

static inline void emu_wait(const void *kind) {
    emu_fiber *self = &emu_fibers[emu_now];
    self->waits = kind;
    swapcontext(&self->context, &emu_scheduler);
}

static const char emu_barrier[] = "__syncthreads", emu_shuffle[] = "__shfl_xor_sync";

static inline void __syncthreads() { emu_wait(emu_barrier); }

template <typename T> static inline T __shfl_xor_sync(unsigned mask, T value, int distance) {
    T other;
    (void)mask;
    memcpy(&emu_slots[threadIdx.x], &value, sizeof value);
    emu_wait(emu_shuffle);
    memcpy(&other, &emu_slots[threadIdx.x ^ (unsigned)distance], sizeof other);
    emu_wait(emu_shuffle);
    return other;
}

static void emu_enter() {
    emu_body();
    emu_fibers[emu_now].done = 1;
    swapcontext(&emu_fibers[emu_now].context, &emu_scheduler);
}

static void emu_resume(unsigned thread) {
    emu_now = thread;
    threadIdx.x = thread;
    emu_fibers[thread].waits = NULL;
    swapcontext(&emu_scheduler, &emu_fibers[thread].context);
}

static void emu_check(const char *name) {
    for (unsigned i = 1; i < emu_size; i++)
        if (emu_fibers[i].done != emu_fibers[0].done || emu_fibers[i].waits != emu_fibers[0].waits) {
            fprintf(stderr, "%s: threads 0 and %u part at a barrier\n", name, i);
            abort();
        }
}

static void emu_run_block(const char *name, unsigned threads) {
    if (!emu_stacks) emu_stacks = (char *)malloc((size_t)EMU_THREADS * EMU_STACK);
    emu_size = threads;
    for (unsigned i = 0; i < threads; i++) {
        emu_fiber *fiber = &emu_fibers[i];
        getcontext(&fiber->context);
        fiber->context.uc_stack.ss_sp = emu_stacks + (size_t)i * EMU_STACK;
        fiber->context.uc_stack.ss_size = EMU_STACK;
        fiber->context.uc_link = &emu_scheduler;
        fiber->waits = NULL;
        fiber->done = 0;
        makecontext(&fiber->context, emu_enter, 0);
    }
    for (int round = 0; !emu_fibers[0].done; round++) {
        for (unsigned i = 0; i < threads; i++) emu_resume(round % 2 ? threads - 1 - i : i);
        emu_check(name);
    }
}

/* --- tensor cores: lane 0 of the warp does it all, so fragments may only be filled, loaded, multiplied and stored */

namespace nvcuda {
namespace wmma {
struct row_major {};
struct col_major {};
struct matrix_a {};
struct matrix_b {};
struct accumulator {};
enum layout_t { mem_row_major, mem_col_major };

template <typename Use, int M, int N, int K, typename T, typename Layout = row_major> struct fragment {
    T at[16][16];
};

static inline bool emu_leads() { return threadIdx.x % 32 == 0; }
static inline bool emu_by_rows(row_major) { return true; }
static inline bool emu_by_rows(col_major) { return false; }

template <typename F, typename T> static inline void fill_fragment(F &f, T value) {
    if (!emu_leads()) return;
    for (auto &row : f.at)
        for (auto &x : row) x = value;
}

template <typename Use, int M, int N, int K, typename T, typename Layout>
static inline void load_matrix_sync(fragment<Use, M, N, K, T, Layout> &f, const T *from, unsigned stride) {
    static_assert(M == 16 && N == 16 && K == 16, "only 16 x 16 x 16 is emulated");
    if (!emu_leads()) return;
    for (int i = 0; i < 16; i++)
        for (int j = 0; j < 16; j++) f.at[i][j] = emu_by_rows(Layout()) ? from[i * stride + j] : from[j * stride + i];
}

template <typename D, typename A, typename B> static inline void mma_sync(D &d, const A &a, const B &b, const D &c) {
    if (!emu_leads()) return;
    for (int i = 0; i < 16; i++)
        for (int j = 0; j < 16; j++) {
            auto sum = c.at[i][j];
            for (int k = 0; k < 16; k++) sum += (decltype(sum))a.at[i][k] * (decltype(sum))b.at[k][j];
            d.at[i][j] = sum;
        }
}

template <typename F, typename T>
static inline void store_matrix_sync(T *to, const F &f, unsigned stride, layout_t layout) {
    if (!emu_leads()) return;
    for (int i = 0; i < 16; i++)
        for (int j = 0; j < 16; j++) to[layout == mem_row_major ? i * stride + j : j * stride + i] = f.at[i][j];
}
} // namespace wmma
} // namespace nvcuda

/* --- launching: every argument takes eight bytes, so one type of call fits all kernels */

#define EMU_ARGUMENTS 48

struct emu_kernel {
    const char *name;
    void *code;
    int n;                /* arguments */
    const char *pointers; /* for each: '*' or 'n' */
    int waits;            /* whether its threads ever wait for one another */
};

static const emu_kernel *emu_current;
static const uint64_t *emu_arguments;

template <int... I> struct emu_indices {};
template <int N, int... I> struct emu_count : emu_count<N - 1, N - 1, I...> {};
template <int... I> struct emu_count<0, I...> {
    typedef emu_indices<I...> type;
};
template <int I> using emu_word = uint64_t;

template <int... I> static void emu_call_with(emu_indices<I...>) {
    ((void (*)(emu_word<I>...))emu_current->code)(emu_arguments[I]...);
}

static void emu_call() { emu_call_with(emu_count<EMU_ARGUMENTS>::type()); }

extern const emu_kernel emu_kernels[];

extern "C" const emu_kernel *emu_find(const char *name) {
    const emu_kernel *k = emu_kernels;
    while (k->name && strcmp(k->name, name) != 0) k++;
    return k->name ? k : NULL;
}

/* `arguments` has EMU_ARGUMENTS elements. */
extern "C" void emu_launch(const emu_kernel *kernel, const uint64_t *arguments, unsigned blocks, unsigned threads) {
    emu_current = kernel;
    emu_arguments = arguments;
    emu_body = emu_call;
    for (unsigned block = 0; block < blocks; block++) {
        blockIdx.x = block;
        if (kernel->waits) {
            emu_run_block(kernel->name, threads);
            continue;
        }
        for (unsigned i = 0; i < threads; i++) {
            threadIdx.x = i;
            emu_call();
        }
    }
}
