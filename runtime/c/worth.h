/*
 * worth.h - whether the workers of a pool gain time. Internal, included in pool.c alone.
 *
 * Where another process wants a worker's core, the system puts the worker aside with a chunk in its hands, and the job
 * waits for it: milliseconds. Alone the caller would have done all chunks at the pace of its own:
 *
 *     gain = alone - took,   alone = (took - waited) * chunks / own
 *
 * Gains are summed, up to CREDIT. When the sum falls below -DEBT the caller works alone until it has worked for a pause,
 * or ten times as long has passed, and then tries the workers again. A try that ends soon doubles the next pause.
 */
#ifndef LLMC_WORTH_H
#define LLMC_WORTH_H

/* All in seconds. */
#define CREDIT 4e-3 /* more than a worker is put aside for once: that alone is no reason */
#define DEBT 1e-3
#define FIRST_PAUSE 10e-3
#define LONGEST_PAUSE 320e-3
#define OVER 10 /* a pause ends after this many times its length, worked or not */
#define SOON 4  /* a try that lasted this many times the pause before it was no short one */

typedef struct worth {
    double sum;    /* of gains */
    double pause;  /* length of the last pause; 0: there was none */
    double begun;  /* when the try or the pause began */
    double worked; /* in this pause */
    int alone;     /* whether this is a pause */
} worth;

/* A job ended: all or `own` of `chunks` were the caller's. */
static void worth_count(worth *w, double now, double took, double waited, unsigned own, unsigned chunks) {
    if (own == 0) return; /* its pace is not known */
    w->sum += (took - waited) * chunks / own - took;
    if (w->sum > CREDIT) w->sum = CREDIT;
    if (w->sum >= -DEBT) return;
    w->pause = w->pause == 0 || now - w->begun > SOON * w->pause ? FIRST_PAUSE : 2 * w->pause;
    if (w->pause > LONGEST_PAUSE) w->pause = LONGEST_PAUSE;
    w->begun = now;
    w->worked = 0;
    w->alone = 1;
}

/* Whether the caller is to do the next job alone. */
static int worth_alone(worth *w, double now) {
    if (w->alone && (w->worked >= w->pause || now - w->begun >= OVER * w->pause)) {
        w->alone = 0;
        w->sum = 0;
        w->begun = now;
    }
    return w->alone;
}

#endif
