/*
 * model.h - what the files of the runtime share. Internal.
 */
#ifndef LLMC_MODEL_H
#define LLMC_MODEL_H

#include <pthread.h>
#include <stdint.h>
#include <sys/types.h>

#include "module.h"

#define LLMC_WEIGHTS_HEADER 4096 /* bytes of weights.bin before the weights */

typedef struct llmc_pool llmc_pool;

/* What a pool can do, by pointers: threads that are shared may belong to another module.so with its own copy of pool.c. */
typedef struct llmc_pool_functions {
    int version; /* LLMC_VERSION */
    void (*run)(llmc_pool *pool, llmc_task task, const void *arguments, int64_t items, int64_t cost);
    int (*threads)(const llmc_pool *pool);
    llmc_status (*reserve)(llmc_pool *pool, size_t scratch_bytes, llmc_error *error); /* that much scratch at least */
    void (*turn)(llmc_pool *pool, int mine); /* 1: wait until no other model runs; 0: let the others */
} llmc_pool_functions;

struct llmc_threads { /* how a pool begins */
    const llmc_pool_functions *functions;
};

typedef struct llmc_device_state llmc_device_state;

/* A device with memory of its own; cuda.c has one. The model's lock is held during `run`. */
struct llmc_device {
    llmc_status (*open)(llmc_model *model, llmc_error *error); /* after the weights are mapped */
    void (*close)(llmc_model *model, int forked);              /* also after a failed open */
    llmc_status (*run)(llmc_model *model, const llmc_tensor *outputs, const int64_t *sizes,
                       llmc_error *error); /* model->inputs are the host's; the program may overwrite them */
};

struct llmc_model {
    const llmc_program *program;
    const llmc_variant *variant;
    llmc_info info;
    pid_t owner;          /* the process that opened it */
    unsigned char *map;   /* weights.bin, header and all */
    size_t map_bytes;
    llmc_pool *pool;
    const llmc_pool_functions *pool_can;
    int pool_shared;      /* not ours to close */
    pthread_mutex_t lock; /* held by the run in progress; guards all below */
    unsigned char *arena;
    size_t arena_bytes;
    unsigned char *defaults; /* the inputs that were not given, one after the other */
    size_t defaults_bytes;
    const void **inputs; /* of the run in progress */
    void **outputs;
    double *step_seconds; /* n_steps sums, or NULL: no profile wanted */
    llmc_device_state *device; /* the device's own, or NULL */
};

/* error.c: fill `error` (may be NULL) and return `status`. */
llmc_status llmc_fail(llmc_error *error, llmc_status status, const char *hint, const char *format, ...)
#if defined(__GNUC__)
    __attribute__((format(printf, 4, 5)))
#endif
    ;
llmc_status llmc_fail_memory(llmc_error *error, size_t bytes);

/* run.c: put the sizes of the counted dims after those of the others. */
void llmc_count_dims(const llmc_program *program, const llmc_tensor *inputs, int64_t *sizes);

/* cpu.c */
unsigned llmc_cpu_features(void);                                   /* LLMC_CPU_* this processor and system have */
void llmc_cpu_feature_names(unsigned features, char *text, size_t size); /* "AVX2 and FMA, AVX-512 VNNI" */
int llmc_usable_cores(void);                                        /* physical cores this process may use, >= 1 */
int llmc_pin_thread(int index);                                     /* bind the caller to the index-th usable core */
uint64_t llmc_float_mode(void);         /* make arithmetic IEEE (no flush to zero, round to nearest); what it was */
void llmc_set_float_mode(uint64_t mode);
double llmc_now(void);                  /* seconds of the monotonic clock */
uint64_t llmc_peak_memory(void);        /* bytes, 0: unknown */

/* pool.c: `threads` threads, the caller's included, each with scratch_bytes of its own; workers that
 * find no work look for it for spin_us (negative: 0) before they sleep. */
llmc_status llmc_pool_open(llmc_pool **pool, int threads, int spin_us, int pin, size_t scratch_bytes,
                           llmc_error *error);
extern const llmc_pool_functions llmc_pool_can;
void llmc_pool_close(llmc_pool *pool);
void llmc_pool_abandon(llmc_pool *pool); /* after fork(): free what is ours without the threads, which are not here */

/* open.c: a model's own lock, and with shared threads the turn among their models. */
void llmc_lock(llmc_model *model);
void llmc_unlock(llmc_model *model);

/* sha256.c */
typedef struct llmc_sha256 {
    uint32_t state[8];
    uint64_t bytes;
    unsigned char block[64];
} llmc_sha256;

void llmc_sha256_start(llmc_sha256 *hash);
void llmc_sha256_add(llmc_sha256 *hash, const void *data, size_t bytes);
void llmc_sha256_hex(llmc_sha256 *hash, char text[65]);

#endif
