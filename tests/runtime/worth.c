/* worth.c - a pool's decision to leave its workers asleep, on made times: prints what tests/runtime/test_pool.py reads. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "worth.h"

/* Jobs of 0.1 ms on two threads, one chunk of 16 left to the worker's luck: `good` seconds well, then `lost` seconds of waiting. */
int main(int argc, char **argv) {
    double good = atof(argv[1]), lost = atof(argv[2]), until = argc > 3 ? atof(argv[3]) : 10, clock = 0;
    double waited = 0, alone = 0, since = 0;
    int pauses = 0, was = 0;
    worth w;
    memset(&w, 0, sizeof w);
    while (clock < until) {
        double took = 100e-6, wait = 0;
        if (worth_alone(&w, clock)) {
            took *= 2; /* nobody helps */
            w.worked += took;
            alone += took;
            pauses += !was;
            was = 1;
            since = 0; /* who was asleep is let in at once */
        } else {
            was = 0;
            since += took;
            if (since > good) {
                wait = lost;
                since = 0;
            }
            took += wait;
            worth_count(&w, clock + took, took, wait, 8, 16);
        }
        waited += wait;
        clock += took;
    }
    printf("%d %.4f %.4f\n", pauses, alone / clock, waited / clock);
    return 0;
}
