/* pool_signals.c - signals sent to a process whose own threads have blocked them, while a pool's workers are there. */
#define _GNU_SOURCE
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include "pool.c"

int main(void) {
    const struct timespec nap = {0, 50000000};
    llmc_pool *pool = NULL;
    llmc_error error;
    sigset_t before, after, blocked, waiting;
    int number;
    pthread_sigmask(SIG_SETMASK, NULL, &before);
    if (llmc_pool_open(&pool, 3, -1, 0, 64, &error) != LLMC_OK) return 2;
    pthread_sigmask(SIG_SETMASK, NULL, &after);
    sigemptyset(&blocked);
    sigaddset(&blocked, SIGUSR1);
    pthread_sigmask(SIG_BLOCK, &blocked, NULL);
    kill(getpid(), SIGUSR1);
    nanosleep(&nap, NULL);
    if (sigpending(&waiting) != 0 || !sigismember(&waiting, SIGUSR1)) return 3;
    for (number = 1; number < 32; number++)
        if (sigismember(&before, number) != sigismember(&after, number)) return 4;
    llmc_pool_close(pool);
    puts("it waits for the program; masks are as they were");
    return 0;
}
