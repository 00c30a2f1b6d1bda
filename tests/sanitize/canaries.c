/* Seeded defects, one for each thing that a sanitizer or valgrind is there for: `canaries NAME` has it. All are of the kinds that C hides. */
#include <limits.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static volatile int sink, one = 1;
static int shared;

static int heap_overflow(void)
{
    volatile char *place = malloc((size_t)one * 16);
    place[15 + one] = 1;
    sink = place[15 + one];
    free((void *)place);
    return 0;
}

static int signed_overflow(void)
{
    int large = INT_MAX;
    sink = large + one;
    return 0;
}

static int leak(void)
{
    void *volatile lost = malloc((size_t)one * 64);
    lost = NULL;
    return lost != NULL;
}

static int uninitialised(void)
{
    volatile int *place = malloc(sizeof *place);
    if (*place == one)
        puts("it happened to be one");
    free((void *)place);
    return 0;
}

static void *count(void *unused)
{
    for (int i = 0; i < 100000; i++)
        shared++;
    return unused;
}

static int data_race(void)
{
    pthread_t thread;
    if (pthread_create(&thread, NULL, count, NULL))
        return 3;
    count(NULL);
    pthread_join(thread, NULL);
    sink = shared;
    return 0;
}

static int nothing(void)
{
    return 0;
}

int main(int argc, char **argv)
{
    static const struct {
        const char *name;
        int (*run)(void);
    } all[] = { { "heap_overflow", heap_overflow }, { "signed_overflow", signed_overflow }, { "leak", leak },
                { "uninitialised", uninitialised }, { "data_race", data_race },             { "nothing", nothing } };
    for (size_t i = 0; argc == 2 && i < sizeof all / sizeof *all; i++)
        if (strcmp(argv[1], all[i].name) == 0)
            return all[i].run();
    return 2;
}
