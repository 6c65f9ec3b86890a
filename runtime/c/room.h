/*
 * room.h - where the workers of a pool may run. Internal, included in pool.c alone.
 *
 * In a virtual machine Linux takes an idle processor for one that its host has given away, and puts who is woken behind
 * the caller, for as long as the caller's slice of time lasts: milliseconds. So a worker is kept off the caller's
 * processor, within what the system or the user allows it, which may be said anew at any time, by the same call. With
 * more threads than processors the scheduler is to place them.
 */
#ifndef LLMC_ROOM_H
#define LLMC_ROOM_H

#include <pthread.h>
#include <sched.h>
#include <sys/types.h>

/* A worker's processors: by its system or user, and of these by us. */
typedef struct places {
    cpu_set_t allowed, given;
} places;

/* Whether a thread (0: this one) is to stay on just these processors. */
static int stays_on(pid_t thread, const cpu_set_t *set) {
    cpu_set_t own;
    return sched_getaffinity(thread, sizeof own, &own) == 0 && CPU_EQUAL(&own, set);
}

/*
 * Keep a worker off the processor `cpu`, where at least `needed` are left. Of what it may run on now it is looked whether
 * somebody else has spoken since: also where that is what we have said last, if the caller and the main thread hear the same.
 */
static void keep_off(pthread_t worker, pid_t main_thread, int needed, places *may, int cpu) {
    cpu_set_t now, others;
    int told;
    if (pthread_getaffinity_np(worker, sizeof now, &now) != 0) return;
    told = !CPU_EQUAL(&now, &may->given) || (stays_on(0, &now) && stays_on(main_thread, &now));
    others = told ? now : may->allowed;
    CPU_CLR((size_t)cpu, &others);
    if (CPU_COUNT(&others) < needed || pthread_setaffinity_np(worker, sizeof others, &others) != 0) return;
    if (told) may->allowed = now;
    may->given = others;
}

#endif
