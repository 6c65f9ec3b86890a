/*
 * module.h - what a generated program hands to the runtime, and what the runtime lends to it.
 *
 * Internal: users read llmc.h. The compiler writes one `module.c` that defines `llmc_program`; it is linked
 * with the runtime and the kernels into module.so. Everything the runtime needs to check a call is here as
 * read-only data, so a damaged manifest cannot mislead it.
 */
#ifndef LLMC_MODULE_H
#define LLMC_MODULE_H

#include <stddef.h>
#include <stdint.h>

#define LLMC_MAX_RANK 8
#define LLMC_MAX_DIMS 16

/* CPU features a variant needs, as bits. */
#define LLMC_CPU_AVX2 1u       /* AVX2 and FMA */
#define LLMC_CPU_AVX512 2u     /* AVX-512 F, BW, DQ, VL */
#define LLMC_CPU_AVX512VNNI 4u /* AVX-512 VNNI */

typedef struct llmc_dim_info {
    const char *name;
    int64_t low, high; /* inclusive */
} llmc_dim_info;

/* The runtime-visible part of a tensor's type. `dims[i]` is a fixed size, or -1-d for named dim d, or
 * INT64_MIN for an expression, whose size `llmc_program.output_shape` gives. */
typedef struct llmc_tensor_spec {
    const char *name;
    int dtype; /* llmc_dtype of llmc.h */
    int rank;
    int64_t dims[LLMC_MAX_RANK];
    const char *dims_text[LLMC_MAX_RANK]; /* "batch", "2*seq + 1", "384" */
    int has_default;                      /* inputs: may be absent, is then filled with default_value */
    double default_value;
    int has_range; /* integer inputs: each value must lie in low..high */
    int64_t low, high;
} llmc_tensor_spec;

/* One call of one kernel. `task` runs the work items begin..end of it on the calling thread. */
typedef void (*llmc_task)(const void *arguments, int64_t begin, int64_t end, void *scratch);

typedef struct llmc_step_spec {
    const char *kernel; /* "linear" */
    const char *source; /* "encoder.layer.3.attention.self.query" */
} llmc_step_spec;

typedef struct llmc_frame llmc_frame;

/* What a running program sees. */
struct llmc_frame {
    const int64_t *dims;          /* sizes of the named dims, in llmc_program.dims order */
    const unsigned char *weights; /* start of the mapped weights, 64-byte aligned */
    unsigned char *arena;         /* llmc_program.arena_bytes(dims) bytes, 64-byte aligned */
    const void *const *inputs;    /* one for each input, never NULL */
    void *const *outputs;         /* one for each output, never NULL */
    void *runtime;                /* the runtime's own */
};

/* Run `task` over work items 0..items on the frame's threads and return when all are done. `cost` is the work of
 * one item in multiply-adds or bytes touched, whichever is more: the runtime cuts chunks by it. */
void llmc_run_step(llmc_frame *frame, int step, llmc_task task, const void *arguments, int64_t items, int64_t cost);

typedef struct llmc_variant {
    const char *name;    /* "avx512" */
    unsigned features;   /* LLMC_CPU_* it needs */
    const void *kernels; /* table of function pointers, known to the program only */
    double (*fma_loop)(int64_t rounds);        /* measures the fma peak; returns FLOP done, NULL if absent */
} llmc_variant;

typedef struct llmc_program {
    uint32_t abi;         /* LLMC_MODULE_ABI */
    const char *name;     /* model name, for messages */
    const char *build_id; /* 64 hex digits; weights.bin starts with the same */
    uint64_t weights_bytes; /* size of weights.bin after its 64-byte header rounded to 4096 */
    int n_dims, n_inputs, n_outputs, n_steps, n_variants;
    const llmc_dim_info *dims;
    const llmc_tensor_spec *inputs, *outputs;
    const llmc_step_spec *steps;
    const llmc_variant *variants;                                  /* best first */
    size_t scratch_bytes;                                          /* for each thread */
    size_t (*arena_bytes)(const int64_t *dims);
    void (*output_shape)(const int64_t *dims, int output, int64_t *shape);
    void (*step_cost)(const int64_t *dims, int step, double *flops, double *bytes);
    void (*run)(llmc_frame *frame, const void *kernels);
} llmc_program;

#define LLMC_MODULE_ABI 1u

extern const llmc_program llmc_this_program;

#endif
