/*
 * generate_memory.c - what a text in the making holds.
 */
#include <stdlib.h>
#include <string.h>

#include "generate.h"

/* The tokens that may come, a copy of the caller's or to be asked for; 0: no memory. */
static int find_mask(llmc_generation *g) {
    size_t bytes = ((size_t)g->by.vocabulary + 31) / 32 * sizeof *g->mask;
    llmc_choice_options *choice = &g->options.choice;
    if (!choice->allowed && !g->options.allow) return 1;
    g->mask = (uint32_t *)malloc(bytes);
    if (g->mask && choice->allowed) memcpy(g->mask, choice->allowed, bytes);
    choice->allowed = g->mask;
    return g->mask != NULL;
}

llmc_status llmc_find_memory(llmc_generation *g, llmc_error *error) {
    llmc_generate_options *o = &g->options;
    size_t rows = (size_t)o->lookup + 1, v = (size_t)g->by.vocabulary, top = (size_t)o->top_logprobs;
    int lists = llmc_copy_lists(&o->choice) && find_mask(g);
    if (g->by.keep < 0 && rows < (size_t)o->chunk) rows = (size_t)o->chunk;
    g->logits = rows < SIZE_MAX / 8 / v ? (float *)malloc(rows * v * sizeof *g->logits) : NULL;
    g->logprobs = (double *)malloc(rows * sizeof *g->logprobs);
    g->top = (int64_t *)malloc((rows * top + 1) * sizeof *g->top);
    g->top_logprobs = (double *)malloc((rows * top + 1) * sizeof *g->top_logprobs);
    if (lists && g->logits && g->logprobs && g->top && g->top_logprobs)
        return llmc_chooser_open(&g->chooser, &o->choice, g->by.vocabulary, error);
    return llmc_fail_memory(error, rows * v * sizeof *g->logits);
}

llmc_status llmc_reserve_ids(llmc_generation *g, int64_t n, llmc_error *error) {
    int64_t room = g->room + g->room / 2, *ids;
    if (n <= g->room) return LLMC_OK;
    if (room < n) room = n;
    ids = (int64_t *)realloc(g->ids, (size_t)room * sizeof *ids);
    if (!ids) return llmc_fail_memory(error, (size_t)room * sizeof *ids);
    g->ids = ids;
    g->room = room;
    return LLMC_OK;
}

void llmc_generation_close(llmc_generation *g) {
    if (!g) return;
    llmc_chooser_close(&g->chooser);
    llmc_free_lists(&g->options.choice);
    free(g->ids);
    free(g->mask);
    free(g->logits);
    free(g->logprobs);
    free(g->top);
    free(g->top_logprobs);
    llmc_batch_close(&g->batch);
    free(g);
}
