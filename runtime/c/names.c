/*
 * names.c - what is said of a name that nothing has.
 */
#include <stdio.h>
#include <string.h>

#include "model.h"

#define LONGEST_NAME 63

static int least(int a, int b) {
    return a < b ? a : b;
}

/* Letters to insert, delete or exchange to make one name of the other (Levenshtein), of their first 63. */
static int distance(const char *a, const char *b) {
    int row[LONGEST_NAME + 1], i, j, n = 0;
    while (n < LONGEST_NAME && b[n]) n++;
    for (j = 0; j <= n; j++) row[j] = j;
    for (i = 0; i < LONGEST_NAME && a[i]; i++) {
        int diagonal = row[0];
        row[0] = i + 1;
        for (j = 0; j < n; j++) {
            int changed = diagonal + (a[i] != b[j]);
            diagonal = row[j + 1];
            row[j + 1] = least(changed, least(row[j], row[j + 1]) + 1);
        }
    }
    return row[n];
}

llmc_status llmc_no_such(const char *what, const char *name, const llmc_program *program,
                         const char *(*name_of)(const llmc_program *program, int i), int n, llmc_error *error) {
    char names[200] = "", hint[256];
    const char *near = NULL;
    int i, best = (int)strlen(name) / 2 + 1;
    for (i = 0; i < n; i++) {
        size_t used = strlen(names);
        int letters = distance(name, name_of(program, i));
        snprintf(names + used, sizeof names - used, "%s%s", used ? ", " : "", name_of(program, i));
        if (letters >= best) continue;
        best = letters;
        near = name_of(program, i);
    }
    snprintf(hint, sizeof hint, "%s%.40s%sit has %s", near ? "did you mean " : "", near ? near : "", near ? "? " : "",
             n ? names : "none");
    return llmc_fail(error, LLMC_ERROR_ARGUMENT, hint, "the model has no %s '%.100s'", what, name);
}
