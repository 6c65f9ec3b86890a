/*
 * threads.c - threads of a model, of a session, or shared by several, and whose turn it is to work with them.
 */
#include "model.h"

#define MAX_THREADS 1024
#define SPIN_US 100       /* longer than the pause between two jobs of a run */
#define CROWDED_SPIN_US 5 /* with more threads than cores, waiting keeps others from working */

llmc_status llmc_start_threads(int threads, int spin_us, int pin, size_t scratch_bytes, llmc_pool **pool,
                               llmc_error *error) {
    int cores = llmc_usable_cores();
    if (!threads) threads = cores;
    if (!spin_us) spin_us = threads > cores ? CROWDED_SPIN_US : SPIN_US;
    if (threads < 1 || threads > MAX_THREADS)
        return llmc_fail(error, LLMC_ERROR_ARGUMENT, "0 means one for each core",
                         "threads is %d, must be within 0..%d", threads, MAX_THREADS);
    return llmc_pool_open(pool, threads, spin_us, pin, scratch_bytes, error);
}

llmc_status llmc_threads_open(const llmc_options *options, llmc_threads **threads, llmc_error *error) {
    llmc_pool *pool = NULL;
    llmc_status status;
    if (!threads) return llmc_fail(error, LLMC_ERROR_ARGUMENT, NULL, "threads must not be NULL");
    *threads = NULL;
    status = llmc_start_threads(options ? options->threads : 0, options ? options->spin_us : 0,
                                options ? options->pin : 0, 0, &pool, error);
    *threads = (llmc_threads *)(void *)pool;
    return status;
}

void llmc_threads_close(llmc_threads *threads) {
    if (threads) llmc_pool_close((llmc_pool *)(void *)threads);
}

llmc_status llmc_join_threads(llmc_threads *shared, size_t scratch_bytes, llmc_pool **pool,
                              const llmc_pool_functions **pool_can, llmc_error *error) {
    llmc_status status;
    if (shared->functions->version != LLMC_VERSION)
        return llmc_fail(error, LLMC_ERROR_ARGUMENT, "compile both artifacts with the same llmc",
                         "the shared threads speak version %d of llmc.h, this module version %d",
                         shared->functions->version, LLMC_VERSION);
    *pool = (llmc_pool *)(void *)shared;
    *pool_can = shared->functions;
    while (!(*pool_can)->take_turn(*pool)) continue;
    status = (*pool_can)->reserve(*pool, scratch_bytes, error);
    (*pool_can)->end_turn(*pool);
    return status;
}

llmc_status llmc_take_turn(llmc_session *session) {
    while (session->in_turns && !session->pool_can->take_turn(session->pool)) {
        int why = llmc_is_over(session);
        if (why) return (llmc_status)why;
    }
    return LLMC_OK;
}

void llmc_end_turn(llmc_session *session) {
    if (session->in_turns) session->pool_can->end_turn(session->pool);
}
