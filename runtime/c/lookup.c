/*
 * lookup.c - guess the next tokens: those that came after the last ones where they came before (prompt look-up).
 */
#include <string.h>

#include "generate.h"

/* Where the last `gram` tokens came before, the latest place; -1: nowhere. */
static int64_t find(const int64_t *ids, int64_t n, int64_t gram) {
    int64_t at;
    for (at = n - gram - 1; at >= 0; at--)
        if (memcmp(ids + at, ids + n - gram, (size_t)gram * sizeof *ids) == 0) return at;
    return -1;
}

int64_t llmc_look_up(const int64_t *ids, int64_t n, int64_t longest, int64_t most, int64_t *guesses) {
    int64_t gram, i, at = -1;
    for (gram = longest < n ? longest : n - 1; gram > 0 && at < 0; gram--) at = find(ids, n, gram);
    if (at < 0) return 0;
    at += gram + 1; /* the first token behind */
    for (i = 0; i < most && at + i < n; i++) guesses[i] = ids[at + i];
    return i;
}
