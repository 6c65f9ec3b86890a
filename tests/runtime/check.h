/* check.h - of C programs that are tests: end with a sentence where something is not so. `error` is theirs. */
#ifndef CHECK_H
#define CHECK_H

#include <stdio.h>
#include <stdlib.h>

#define CHECK(condition)                                                                  \
    do {                                                                                  \
        if (!(condition)) {                                                               \
            fprintf(stderr, "%s:%d: %s is false: %s\n", __FILE__, __LINE__, #condition, error.message); \
            exit(1);                                                                      \
        }                                                                                 \
    } while (0)

#endif
