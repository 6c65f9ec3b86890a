/*
 * caution.h - when pool.c had better not ask other threads for help. Internal, included there alone.
 *
 * A worker whose core the system gives to another process keeps its chunk for milliseconds, and the caller waits.
 */
#ifndef LLMC_CAUTION_H
#define LLMC_CAUTION_H

#include "model.h"

/* 1: after a worker kept a chunk much longer than chunks take, because the system gave its core to another process, the
 * caller works alone for some time: twice as long as it has waited, and up to 16 times if that happens again and again. */
#ifndef LLMC_POOL_CAUTION
#define LLMC_POOL_CAUTION 0
#endif
#define STALL 1e-4          /* seconds: a wait that is no longer never counts */
#define MOST_CAUTION 16
#define LONGEST_ALONE 0.05  /* seconds */
#define FORGIVEN 0.02       /* seconds without such a wait, after which it was an accident */

typedef struct caution {
    double alone_until, stalled; /* when the caller may ask for help again; when it last waited in vain */
    int times;                   /* that wait, which it then works alone */
} caution;

#if LLMC_POOL_CAUTION
/* The caller waited from `waiting` on, in a job begun at `begin` of which it did `own` chunks itself. */
static void judge_wait(caution *c, double begin, double waiting, int own) {
    double now = llmc_now(), wait = now - waiting, alone;
    if (wait < STALL || wait < 2 * (waiting - begin) / (own ? own : 1)) return; /* as long as a chunk may take */
    c->times = now - c->stalled > FORGIVEN + LONGEST_ALONE ? 2 : c->times * 2;
    if (c->times > MOST_CAUTION) c->times = MOST_CAUTION;
    alone = c->times * wait;
    c->stalled = now;
    c->alone_until = now + (alone < LONGEST_ALONE ? alone : LONGEST_ALONE);
}

static int is_alone(const caution *c) {
    return c->alone_until > 0 && llmc_now() < c->alone_until;
}
#else
static int is_alone(const caution *c) {
    (void)c;
    return 0;
}
#endif

#endif
