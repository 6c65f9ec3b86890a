/*
 * module.h - what a generated program hands to the runtime, and what the runtime lends to it.
 *
 * Internal: users read llmc.h. The compiler writes one `module.c` that defines `llmc_program`; it is linked
 * with the runtime and the kernels into module.so. Everything the runtime needs to check a call is here as
 * read-only data, so a damaged manifest cannot mislead it.
 *
 * Link with -fvisibility=hidden -Wl,-Bsymbolic: several modules may live in one process.
 */
#ifndef LLMC_MODULE_H
#define LLMC_MODULE_H

#include "llmc.h"

/* CPU features a variant needs, as bits. */
#define LLMC_CPU_AVX2 1u       /* AVX2, FMA and F16C */
#define LLMC_CPU_AVX512 2u     /* AVX-512 F, BW, DQ, VL */
#define LLMC_CPU_AVX512VNNI 4u /* AVX-512 VNNI */
#define LLMC_CPU_NEON 0x100u   /* 64-bit ARM with Advanced SIMD */
#define LLMC_CPU_DOTPROD 0x200u /* sdot, udot */
#define LLMC_CPU_FP16 0x400u   /* arithmetic on half-precision vectors */
#define LLMC_CPU_I8MM 0x800u   /* products of int8 matrices */

/* One call of one kernel. `task` runs the work items begin..end of it on the calling thread. */
typedef void (*llmc_task)(const void *arguments, int64_t begin, int64_t end, void *scratch);

typedef struct llmc_step_spec {
    const char *kernel; /* "linear" */
    const char *source; /* "encoder.layer.3.attention.self.query" */
} llmc_step_spec;

typedef struct llmc_frame llmc_frame;

/* What a running program sees. Inputs and outputs are the caller's: aligned to their element's size, no more. */
struct llmc_frame {
    const int64_t *dims;          /* sizes of the named dims, in llmc_program.dims order */
    const unsigned char *weights; /* start of the mapped weights, 64-byte aligned */
    unsigned char *arena;         /* llmc_program.arena_bytes(dims) bytes, 64-byte aligned */
    const void *const *inputs;    /* one for each input, never NULL */
    void *const *outputs;         /* one for each output, never NULL */
    void *runtime;                /* the runtime's own */
};

/* Run `task` over work items 0..items on the frame's threads and return when all are done. `cost` is the work of
 * one item in multiply-adds or bytes touched, whichever is more: the runtime cuts chunks by it. `scratch` of the task
 * is scratch_bytes of this thread's own, 64-byte aligned, with undefined contents. `step` is whose time it is in
 * the profile; one step may run several tasks. */
void llmc_run_step(llmc_frame *frame, int step, llmc_task task, const void *arguments, int64_t items, int64_t cost);

typedef struct llmc_variant {
    const char *name;    /* "avx512" */
    unsigned features;   /* LLMC_CPU_* it needs */
    const void *kernels; /* table of function pointers, known to the program only */
    double (*fma_loop)(int64_t rounds); /* independent fmas on registers, returns the FLOP done; NULL if absent */
} llmc_variant;

typedef struct llmc_program {
    uint32_t abi;               /* LLMC_MODULE_ABI */
    const char *name;           /* model name, for messages */
    const char *build_id;       /* 64 hex digits; weights.bin starts with the same */
    uint64_t weights_bytes;     /* size of weights.bin after its 4096-byte header */
    const char *weights_sha256; /* of those bytes, 64 hex digits; NULL if unknown */
    int n_dims, n_inputs, n_outputs, n_steps, n_variants;
    const llmc_dim_info *dims;
    const llmc_tensor_spec *inputs, *outputs;
    const llmc_step_spec *steps;
    const llmc_variant *variants; /* best first */
    size_t scratch_bytes;         /* for each thread */

    /* `dims` within their bounds, as in llmc_frame. */
    size_t (*arena_bytes)(const int64_t *dims);
    void (*output_shape)(const int64_t *dims, int output, int64_t *shape);
    void (*step_cost)(const int64_t *dims, int step, double *flops, double *bytes);
    void (*run)(llmc_frame *frame, const void *kernels);
} llmc_program;

#define LLMC_MODULE_ABI 1u

extern const llmc_program llmc_this_program;

#endif
