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
#define LLMC_CPU_AMX 8u        /* AMX tiles with INT8 products, and the system's leave to use them */
#define LLMC_CPU_AVXVNNI 0x10u /* the same with 256-bit registers and no AVX-512 */
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

/* How to tell that sizes do not fit: a text, a value, a text, a value. */
typedef struct llmc_constraint {
    const char *head;   /* "slice at encoder.positions: its stop, seq = " */
    const char *middle; /* ", is above the size of axis 0, width = " */
} llmc_constraint;

typedef struct llmc_frame llmc_frame;

/* What one session has of a run. A run of one session has one part, that is all of it. */
typedef struct llmc_part {
    const int64_t *dims;   /* as llmc_frame.dims, of this session */
    const int64_t *before; /* n_dims: what the parts before this one have along each dim together */
    unsigned char *arena;  /* llmc_function.part_bytes(dims) bytes of its own, 64-byte aligned */
    void *const *states, *const *next; /* as in llmc_frame */
    int64_t items, cost;   /* the program's: of the step that it is about to run for each part */
} llmc_part;

/* What a running program sees. All addresses but `dims` are of the memory its kernels work on, which on a GPU the
 * program cannot read. Inputs and outputs are aligned to their element's size, no more. */
struct llmc_frame {
    const int64_t *dims;          /* sizes of the named dims, in llmc_program.dims order, then of the counted ones; of a
                                     run of several parts those of all together, and 0 for what states have */
    const unsigned char *weights; /* start of the mapped weights, 64-byte aligned */
    unsigned char *arena;         /* llmc_function.arena_bytes(dims) bytes, 64-byte aligned */
    const void *const *inputs;    /* one for each input, never NULL */
    void *const *outputs;         /* one for each output, never NULL */
    void *const *states; /* one for each state of the module, 64-byte aligned: its value now, with room for its next value
                            where it is APPENDED; NULL where UNUSED. Of one with a window the address is that of row 0, and
                            the rows that have left are not there */
    void *const *next;   /* likewise memory for the next value where it is REPLACED, else NULL; both of the first part */
    llmc_part *parts;
    int n_parts;
    void *calls;                  /* n_parts times llmc_program.call_bytes: arguments of the step that runs for each part */
    void *runtime;                /* the runtime's own */
};

/* Run `task` over work items 0..items on the frame's threads and return when all are done. `cost` is the work of
 * one item in multiply-adds or bytes touched, whichever is more: the runtime cuts chunks by it. `scratch` of the task
 * is scratch_bytes of this thread's own, 64-byte aligned, with undefined contents. `step` is whose time it is in
 * the profile; one step may run several tasks. When the run was cancelled nothing is done. */
void llmc_run_step(llmc_frame *frame, int step, llmc_task task, const void *arguments, int64_t items, int64_t cost);

/* The same for work that each part has for itself: `task` runs with argument number i of frame->calls, `bytes` each, for
 * the items of part i. */
void llmc_run_parts(llmc_frame *frame, int step, llmc_task task, size_t bytes);

/* On a GPU: launch kernel number `kernel` of llmc_program.gpu on `blocks` blocks. Every one of the `n` arguments takes
 * eight bytes, an address or an int64_t. Launches and copies run in the order of their calls. */
void llmc_launch(llmc_frame *frame, int step, int kernel, const uint64_t *arguments, int n, int64_t blocks);
void llmc_copy(llmc_frame *frame, int step, void *to, const void *from, size_t bytes);

typedef struct llmc_variant {
    const char *name;    /* "avx512" */
    unsigned features;   /* LLMC_CPU_* it needs */
    const void *kernels; /* table of function pointers, known to the program only */
    double (*fma_loop)(int64_t rounds); /* independent fmas on registers, returns the FLOP done; NULL if absent */
} llmc_variant;

/* Code for GPUs. */
typedef struct llmc_gpu_kernel {
    const char *name;
    int threads; /* of a block */
} llmc_gpu_kernel;

typedef struct llmc_gpu_code {
    const void *image;         /* a fatbin */
    const char *architectures; /* it was made for: "sm_80, sm_90" */
    int n_kernels;
    const llmc_gpu_kernel *kernels;
} llmc_gpu_code;

typedef struct llmc_device llmc_device;

/* One function of the module. The functions below get `dims` as in llmc_frame: within their bounds, and counted. A size
 * that dims_used says is not needed has any value. */
typedef struct llmc_function {
    const char *name; /* "forward", "encode", "step" */
    int n_inputs, n_outputs, n_steps;
    const llmc_tensor_spec *inputs, *outputs;
    const llmc_step_spec *steps;

    /* Dims that the data decides: dim n_dims + i is the number of places kept by input counted[i], an integer mask
     * [rows, columns]: those that are not 0, the first of every row, and all
     * of a row of zeros. */
    int n_counted;
    const int *counted;

    const unsigned char *dims_used; /* n_dims: 1 where the function needs the size; inputs and states give it */
    const unsigned char *state_use; /* n_states: llmc_state_use */

    /* The constraint that sizes do not satisfy, with its two values in `found`; -1: none. NULL: all sizes within bounds
     * are fine. What the functions below say of other sizes means nothing. */
    int (*misfit)(const int64_t *dims, int64_t *found);
    const llmc_constraint *constraints;

    int batches;        /* several sessions may be parts of one run */
    int samples; /* d + 1: the places of each input and output along dim d, their first axis, are computed each for itself,
                    so that those of a large batch may run in any number of runs; 0: no dim is known to be so */
    const char *single; /* else why not, or NULL */

    size_t (*arena_bytes)(const int64_t *dims); /* of all parts */
    size_t (*part_bytes)(const int64_t *dims);  /* of each part besides; NULL: none */
    void (*input_shape)(const int64_t *dims, int input, int64_t *shape);   /* the axes that are INT64_MIN in the spec */
    void (*output_shape)(const int64_t *dims, int output, int64_t *shape); /* likewise */
    size_t (*state_bytes)(const int64_t *dims, int state, int after);      /* before (0) or after the call */
    int64_t (*state_length)(const int64_t *dims, int state);               /* of the growing axis after the call */
    void (*step_cost)(const int64_t *dims, int step, double *flops, double *bytes);
    void (*run)(llmc_frame *frame, const void *kernels);
} llmc_function;

#define LLMC_WEIGHTS_BLOCK (1 << 20)
#define LLMC_ADAPTER "adapter"

typedef struct llmc_program {
    uint32_t abi;               /* LLMC_MODULE_ABI */
    const char *name;           /* model name, for messages */
    const char *build_id;       /* 64 hex digits; weights.bin starts with the same */
    uint64_t weights_bytes;         /* size of weights.bin after its 4096-byte header */
    const uint32_t *weights_crc32c; /* of each LLMC_WEIGHTS_BLOCK of those bytes, the last of what is left; NULL if unknown */
    int n_dims;
    const llmc_dim_info *dims; /* of all functions, shared by name */
    int n_functions;
    const llmc_function *functions; /* the first is what llmc_run() runs */
    int n_states;
    const llmc_state_spec *states; /* states that grow along one dim are updated together, to the same length */
    const int64_t *windows; /* n_states: how many of its newest positions a query sees, its own included, of a state whose
                               axis that grows is the first; 0: all. NULL: all of all. The rest may be anywhere */
    int n_adapters;
    const char *const *adapters; /* names. Functions have an input LLMC_ADAPTER, i64 with a number for each row: 0 is none,
                                    i + 1 is adapters[i] */
    int n_variants;
    const llmc_variant *variants; /* best first */
    size_t scratch_bytes;         /* for each thread */
    size_t call_bytes;            /* for each part of a run */
    const llmc_device *device;    /* whose memory and kernels it uses; NULL: the CPU's */
    const llmc_gpu_code *gpu;     /* for the device */
} llmc_program;

extern const llmc_device llmc_cuda; /* cuda.c, linked where a program names it */

#define LLMC_MODULE_ABI 7u

extern const llmc_program llmc_this_program;

#endif
