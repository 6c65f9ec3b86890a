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

/* Whether a run is to be given up. */
typedef struct llmc_stop {
    int why;      /* llmc_status, LLMC_OK: go on; any thread may set it */
    double until; /* llmc_now() when time is up, 0: never */
} llmc_stop;

/* What a pool can do, by pointers: threads that are shared may belong to another module.so with its own copy of pool.c. */
typedef struct llmc_pool_functions {
    int version; /* LLMC_VERSION */
    void (*run)(llmc_pool *pool, llmc_task task, const void *arguments, int64_t items, int64_t cost, llmc_stop *stop);
    int (*threads)(const llmc_pool *pool);
    llmc_status (*reserve)(llmc_pool *pool, size_t scratch_bytes, llmc_error *error); /* that much scratch at least */
    int (*take_turn)(llmc_pool *pool); /* wait until no other session runs, but a few milliseconds at most: 1 if so */
    void (*end_turn)(llmc_pool *pool);
} llmc_pool_functions;

struct llmc_threads { /* how a pool begins */
    const llmc_pool_functions *functions;
};

/* Memory of a device that a session holds. */
typedef struct llmc_region {
    unsigned char *at; /* 64-byte aligned; NULL: none */
    void *block;       /* what the system gave */
    size_t bytes;
    int *holders; /* how many sessions hold the same memory, atomic; NULL: this one alone, or it lies in blocks */
    struct llmc_blocks *blocks; /* it lies in these; NULL: in one piece */
    int appended; /* it is a state that grows by what lies behind it: it may lie in blocks */
} llmc_region;

typedef struct llmc_blocks llmc_blocks; /* blocks.c: what a region is made of */
typedef struct llmc_store llmc_store;   /* and where blocks come from */

typedef struct llmc_device_model llmc_device_model;     /* a device's own, for each model */
typedef struct llmc_device_session llmc_device_session; /* and for each session */

/* Where a program runs: host.c is the CPU, cuda.c a GPU. */
struct llmc_device {
    int threads; /* that a model works with if nobody says; 0: one for each core */
    llmc_status (*open)(llmc_model *model, llmc_error *error); /* after the weights are mapped */
    void (*close)(llmc_model *model, int forked);              /* also after a failed open */
    llmc_status (*open_session)(llmc_session *session, llmc_error *error);
    void (*close_session)(llmc_session *session, int forked); /* also after a failed open; frees no region */
    /* Make a region hold `bytes`, more than it does; the first `keep` stay as they are. After a failure it holds what
     * it held, or nothing where keep is 0. */
    llmc_status (*grow)(llmc_session *session, llmc_region *region, size_t bytes, size_t keep, llmc_error *error);
    void (*release)(llmc_session *session, llmc_region *region, int forked);
    llmc_status (*copy)(llmc_session *session, void *to, const void *from, size_t bytes, llmc_error *error); /* NULL: zeros */
    /* From its memory to the host's and back, after all that came before is done; also of 0 bytes. */
    llmc_status (*fetch)(llmc_session *session, void *to, const void *from, size_t bytes, llmc_error *error);
    llmc_status (*store)(llmc_session *session, void *to, const void *from, size_t bytes, llmc_error *error);
    size_t (*run_bytes)(const llmc_session *session, const llmc_function *function, const int64_t *sizes,
                        size_t parts); /* what a run takes beside states, with the bytes of its parts */
    /* session->inputs are the host's, where outputs go too; states and next are the device's. session->table has the
     * parts, and `sizes` are those of all together. */
    llmc_status (*run)(llmc_session *session, const llmc_function *function, const llmc_tensor *outputs,
                       const int64_t *sizes, llmc_error *error);
    double (*peak_flops)(llmc_session *session); /* what it does at most with the session's threads; 0: unknown */
    double (*peak_stream)(llmc_session *session);
    const char *single; /* why it runs for one session at a time, or NULL */
};

extern const llmc_device llmc_host; /* host.c */

struct llmc_model {
    const llmc_program *program;
    const llmc_variant *variant;
    const llmc_device *device;
    llmc_device_model *on_device;
    llmc_info info;
    llmc_function_info *functions; /* info's */
    pid_t owner;        /* the process that opened it */
    unsigned char *map; /* weights.bin, header and all */
    size_t map_bytes;
    llmc_pool *pool;
    const llmc_pool_functions *pool_can;
    int pool_shared;    /* not ours to close */
    llmc_session *own;  /* of llmc_run() */
    int users;          /* the model's own name, and sessions; atomic */
    llmc_store *store;  /* NULL: states lie in one piece each */
    uint64_t max_memory, held; /* bytes, 0: no bound; of all sessions, what several hold counted once, atomic */
};

/* Room for what is said of each part of a run that a session leads. */
typedef struct llmc_table {
    llmc_part *parts;
    int64_t *before; /* [room, LLMC_MAX_DIMS] */
    void *calls;
    int room;
    llmc_member *members; /* of the run of several in progress, with all sizes */
    int n;                /* how many; 1: there is none */
} llmc_table;

struct llmc_session {
    llmc_model *model;
    llmc_pool *pool;
    const llmc_pool_functions *pool_can;
    int in_turns, owns_pool; /* others may work with the pool's threads; it is ours to close */
    int busy;                /* a thread uses it; atomic */
    llmc_stop stop;
    uint64_t max_memory, held;
    int generous; /* regions that grow do so by half, because a sequence grows again and again */
    llmc_device_session *on_device;

    llmc_region arena, defaults; /* `defaults`: the inputs that were not given, one after the other; the host's */
    const void **inputs;         /* of the run in progress */
    void **outputs;
    double *step_seconds; /* a sum for each step, or NULL: no profile wanted */

    llmc_table table;
    int n_parts;      /* of the run in progress that it leads */
    size_t part_bytes; /* that its parts have in the arena */

    llmc_region *values, *others; /* of each state: the memory of its value, and of the next one where it is REPLACED */
    int64_t *gone; /* of each state: how many of its first rows are not there, because they have left its window */
    int64_t adapter; /* 0: none, else the number of one of the program's, from 1 */
    int64_t back;  /* positions by which it has gone back at once, up to a bound */
    unsigned char *begun;         /* of each state: its value is there; else it is zeros, or of length 0 */
    void **states, **next;        /* as the frame has them */
    int64_t sizes[LLMC_MAX_DIMS]; /* of the dims that states have; -1: not known. A length is known from the beginning */

    /* Tokens that the states hold, as far as a generation has put them there: the first of the sequence. */
    int64_t *tokens, n_tokens, room_for_tokens;
    int has_others; /* the states hold what no list of tokens says */
};

/* error.c: fill `error` (may be NULL) and return `status`. */
llmc_status llmc_fail(llmc_error *error, llmc_status status, const char *hint, const char *format, ...)
#if defined(__GNUC__)
    __attribute__((format(printf, 4, 5)))
#endif
    ;
llmc_status llmc_fail_memory(llmc_error *error, size_t bytes);

/* bind.c: sizes of the dims, and who said so (NULL: not known yet). */
typedef struct llmc_binding {
    int64_t sizes[LLMC_MAX_DIMS]; /* of the named dims, then of the counted ones */
    const char *from[LLMC_MAX_DIMS];
} llmc_binding;

/* Check inputs against what a function takes and what the session holds; `bound` gets the sizes. */
llmc_status llmc_bind(const llmc_session *session, const llmc_function *function, const llmc_tensor *inputs,
                      llmc_binding *bound, llmc_error *error);
/* The same where the sizes of the inputs' dims are given: `asked` for one session, or `together` for the inputs of all. */
llmc_status llmc_bind_sizes(const llmc_session *session, const llmc_function *function, const int64_t *asked,
                            llmc_binding *bound, llmc_error *error);
llmc_status llmc_bind_together(const llmc_program *program, const llmc_function *function, const llmc_tensor *inputs,
                               const int64_t *together, llmc_error *error);
/* Of sizes that are bound and counted: whether the function has a value at all of them together. */
llmc_status llmc_check_sizes(const llmc_function *function, const int64_t *sizes, llmc_error *error);

/* check.c */
llmc_status llmc_check_type(const llmc_tensor_spec *spec, const llmc_tensor *tensor, const char *kind,
                            llmc_error *error); /* dtype, rank, alignment */
llmc_status llmc_wrong_size(const char *kind, const llmc_tensor_spec *spec, int axis, int64_t size, int64_t expected,
                            llmc_error *error);
llmc_status llmc_check_values(const llmc_function *function, const llmc_tensor *inputs, llmc_error *error);
llmc_status llmc_check_outputs(const llmc_function *function, const llmc_tensor *outputs, const int64_t *sizes,
                               llmc_error *error);
void llmc_input_shape(const llmc_function *function, const int64_t *sizes, int i, int64_t *shape);
void llmc_output_shape(const llmc_function *function, const int64_t *sizes, int i, int64_t *shape);
size_t llmc_elements(int rank, const int64_t *shape); /* LLMC_TOO_MANY: that many or more */
#define LLMC_TOO_MANY (SIZE_MAX / 8 / 1024)           /* bytes of as many tensors as one likes still fit in size_t */
size_t llmc_default_bytes(const llmc_function *function, const int64_t *sizes, int input); /* in a region, aligned */
/* Put the sizes of the counted dims after those of the others; NULL inputs keep all places. */
void llmc_count_dims(const llmc_program *program, const llmc_function *function, const llmc_tensor *inputs,
                     int64_t *sizes);
int64_t llmc_kept(const llmc_tensor *mask, size_t all, size_t columns); /* of the first `all` places of a mask */

/* memory.c: regions of a session on a device, within the bounds on memory. */
llmc_status llmc_reserve(llmc_session *session, const llmc_device *device, llmc_region *region, size_t bytes,
                         size_t keep, llmc_error *error); /* as llmc_device.grow, where the region is too small */
void llmc_release(llmc_session *session, const llmc_device *device, llmc_region *region, int forked);
/* Hold the first `bytes` at least of the memory that another session holds. For the session they count as its own; for the model
 * no more than before. */
llmc_status llmc_share(llmc_session *session, llmc_region *region, llmc_region *theirs, size_t bytes, llmc_error *error);
/* Before bytes from..to are written: have memory of its own for them, with the first `keep` bytes of what it held. */
llmc_status llmc_unshare(llmc_session *session, const llmc_device *device, llmc_region *region, size_t from, size_t to,
                         size_t keep, llmc_error *error);
size_t llmc_held_for(size_t bytes); /* what a region of so many bytes counts, if it lies in one piece */
/* What llmc_reserve() would add to a region, and llmc_unshare() copy. */
size_t llmc_growth_of(const llmc_model *model, const llmc_region *region, size_t bytes, int generous);
size_t llmc_shared_in(const llmc_model *model, const llmc_region *region, size_t from, size_t to);
/* For so many more bytes of the session, and copies of what it holds already. */
llmc_status llmc_check_room(llmc_session *session, size_t bytes, size_t copies, llmc_error *error);

/* blocks.c: 0 or NULL says that memory or maps are lacking, and nothing has changed */
void llmc_store_open(llmc_model *model); /* where there can be one */
void llmc_store_close(llmc_model *model);
size_t llmc_in_blocks(const llmc_model *model, const llmc_region *region, size_t bytes); /* in whole ones; 0: not in blocks */
size_t llmc_blocks_shared(const llmc_store *store, const llmc_region *region, size_t from, size_t to); /* bytes of from..to's */
int llmc_blocks_grow(llmc_session *session, llmc_region *region, size_t bytes, size_t keep); /* as llmc_device.grow */
size_t llmc_blocks_release(const llmc_store *store, llmc_region *region, int forked); /* bytes that nobody holds any more */
int llmc_blocks_share(llmc_store *store, llmc_region *to, const llmc_region *from, size_t bytes);
/* As llmc_unshare(): bytes of new blocks, and of those that nobody holds any more. After a failure some may be there. */
int llmc_blocks_own(llmc_store *store, llmc_region *region, size_t from, size_t to, size_t keep, size_t *made, size_t *freed);

/* states.c */
typedef struct llmc_room { /* of a state in one call, bytes */
    size_t before, value;  /* of its value before the call, and that its memory must hold */
    size_t next;           /* of its next value in other memory */
} llmc_room;

/* `gone`: rows that are not there. */
llmc_room llmc_room_of_state(const llmc_program *program, const llmc_function *function, const int64_t *sizes, int i,
                             int64_t gone);
size_t llmc_held_bytes(const llmc_program *program, const int64_t *sizes, int i, int64_t gone); /* of its value */
int llmc_length_of_state(const llmc_program *program, int i); /* the dim along which it grows, -1: none */
void llmc_forget(llmc_session *session); /* as a new session */
llmc_status llmc_check_growth(const llmc_program *program, const llmc_function *function, const int64_t *sizes,
                              llmc_error *error); /* no length may pass its bound */
size_t llmc_growth_of_states(const llmc_session *session, const llmc_function *function, const int64_t *sizes,
                             int generous);
/* What a call of these sizes writes to, in memory that other sessions hold too. */
size_t llmc_copies_of_states(const llmc_session *session, const llmc_function *function, const int64_t *sizes);
uint64_t llmc_shared_of_states(const llmc_session *session); /* of the bytes held, those that others hold too */
int llmc_is_appended(const llmc_program *program, int i); /* a function appends to state `i` */
uint64_t llmc_bytes_of_states(const llmc_session *session); /* held */
llmc_status llmc_place_states(llmc_session *session, const llmc_function *function, const int64_t *sizes,
                              llmc_error *error); /* the frame's states and next */
void llmc_commit_states(llmc_session *session, const llmc_function *function, const int64_t *sizes);
void llmc_release_spare(llmc_session *session); /* memory whose contents nobody needs */
int llmc_dim_of_states(const llmc_program *program, int d); /* 0: no state has it, 1: one has, 2: one grows along it */

/* windows.c */
int64_t llmc_window_of(const llmc_program *program, int i); /* positions of state `i` that a query sees; 0: all */
int64_t llmc_unseen(const llmc_program *program, int i, int64_t length); /* rows that no query from there on sees */
int64_t llmc_may_leave(const llmc_program *program, int i, int64_t length); /* of these, the ones in whole blocks */
int64_t llmc_rows_for(const llmc_program *program, int i, int64_t rows);    /* to have room for, so that it suffices a while */
/* Before a call at `length`: `row` bytes of a row, `room` of what the call needs. */
llmc_status llmc_let_leave(llmc_session *session, int i, int64_t length, size_t row, size_t room, llmc_error *error);
llmc_status llmc_move_up(llmc_session *session, unsigned char *to, size_t by, size_t bytes, llmc_error *error); /* to + by -> to */
llmc_status llmc_check_seen(llmc_session *session, const int64_t *sizes, llmc_error *error); /* it can go back to them */

/* session.c */
llmc_status llmc_check_owner(const llmc_model *model, llmc_error *error); /* LLMC_ERROR_FORK in another process */
llmc_status llmc_claim(llmc_session *session, llmc_error *error); /* for this thread; LLMC_ERROR_BUSY, _FORK */
void llmc_unclaim(llmc_session *session);

/* resize.c, of a session that is claimed */
llmc_status llmc_resize(llmc_session *session, const int64_t *sizes, llmc_error *error);
const llmc_function *llmc_user_of_state(const llmc_program *program, int i); /* a function that knows its bytes, or NULL */

/* rewind.c, likewise */
int llmc_growing_dim(const llmc_program *program);   /* along which states grow; -1: none, or more than one */
int llmc_fixed_history(const llmc_program *program); /* a state that no shorter length undoes; -1: none */
llmc_status llmc_rewind(llmc_session *session, int64_t length, llmc_error *error);

/* parts.c: what a run of a session has for its parts */
llmc_status llmc_table_open(llmc_session *session, int n, llmc_error *error); /* room for so many */
void llmc_table_close(llmc_session *session);
void llmc_set_parts(llmc_session *leader, const llmc_member *members, int n);
size_t llmc_bytes_of_parts(const llmc_function *function, const llmc_member *members, int n);
void llmc_place_parts(llmc_session *leader, const llmc_function *function, llmc_frame *frame); /* in the leader's arena */

/* samples.c: a batch that runs in smaller ones */
size_t llmc_arena_of_samples(const llmc_session *session, const llmc_function *function, const int64_t *sizes);
void llmc_run_samples(llmc_session *session, const llmc_function *function, const int64_t *sizes); /* to its outputs */

/* run.c, likewise */
llmc_status llmc_run_members(llmc_session *leader, const llmc_function *function, const llmc_member *members, int n,
                             const llmc_tensor *inputs, const llmc_tensor *outputs, const int64_t *sizes,
                             const llmc_run_options *options, llmc_error *error); /* all is checked but memory */
llmc_status llmc_run_claimed(llmc_session *session, const llmc_function *function, const llmc_tensor *inputs,
                             const llmc_tensor *outputs, const llmc_run_options *options, llmc_error *error);

/* sessions.c, of sessions that are claimed */
llmc_status llmc_run_together(const llmc_member *members, int n, const llmc_function *function,
                              const llmc_tensor *inputs, const llmc_tensor *outputs, const llmc_run_options *options,
                              llmc_error *error);

/* history.c: the tokens that a session holds */
llmc_status llmc_tokens_reserve(llmc_session *session, int64_t n, llmc_error *error); /* room for so many */
void llmc_tokens_cut(llmc_session *session, int64_t n);
void llmc_tokens_commit(llmc_session *session, const llmc_function *function); /* a run has changed states */
int64_t llmc_tokens_shared(const llmc_session *session, const int64_t *tokens, int64_t n); /* with the first of these */

/* adapter.c */
llmc_status llmc_find_adapter(const llmc_program *program, const char *name, int64_t *adapter, llmc_error *error); /* NULL: 0 */
int llmc_says_adapter(const llmc_program *program, const llmc_tensor_spec *spec); /* whether the input has their numbers */
void llmc_fill_adapters(int64_t *data, const llmc_function *function, int input, const llmc_member *members, int n);

/* names.c: `what` of that name is none of `n`; the error names the nearest */
llmc_status llmc_no_such(const char *what, const char *name, const llmc_program *program,
                         const char *(*name_of)(const llmc_program *program, int i), int n, llmc_error *error);

/* functions.c */
const llmc_function *llmc_function_of(const llmc_model *model, int number, llmc_error *error); /* NULL: no such */
void llmc_model_leave(llmc_model *model); /* open.c: one user less; the last frees it */

/* weights.c */
llmc_status llmc_map_weights(llmc_model *model, const char *directory, llmc_error *error); /* and check size and header */
llmc_status llmc_check_weights(const llmc_model *model, const char *directory, llmc_error *error); /* on its threads */

/* crc32c.c: the same number by two ways */
uint32_t llmc_crc32c_by_instruction(const void *data, size_t bytes); /* where llmc_cpu_has_crc32c() */
uint32_t llmc_crc32c_by_table(const void *data, size_t bytes);

/* cpu.c */
int llmc_cpu_has_crc32c(void);
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

/* threads.c */
llmc_status llmc_start_threads(int threads, int spin_us, int pin, size_t scratch_bytes, llmc_pool **pool,
                               llmc_error *error); /* threads and spin_us 0: good values */
llmc_status llmc_join_threads(llmc_threads *shared, size_t scratch_bytes, llmc_pool **pool,
                              const llmc_pool_functions **pool_can, llmc_error *error);
llmc_status llmc_take_turn(llmc_session *session); /* LLMC_OK, or why it was given up: cancelled, deadline */
void llmc_end_turn(llmc_session *session);

int llmc_stopped(llmc_stop *stop); /* pool.c; llmc_status */
int llmc_is_over(llmc_session *leader); /* parts.c: the same of a run, which the cancelling of any member ends */

/* peak.c: what this CPU does at most with the session's threads. 0: unknown */
double llmc_peak_flops(llmc_session *session);
double llmc_peak_stream(llmc_session *session);

/* sha256.c: of `bench` */
typedef struct llmc_sha256 {
    uint32_t state[8];
    uint64_t bytes;
    unsigned char block[64];
} llmc_sha256;

void llmc_sha256_start(llmc_sha256 *hash);
void llmc_sha256_add(llmc_sha256 *hash, const void *data, size_t bytes);
void llmc_sha256_hex(llmc_sha256 *hash, char text[65]);

#endif
