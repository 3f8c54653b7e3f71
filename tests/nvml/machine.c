/* The machine in a file, its lock, and faults.

   NVML_STAND_IN_STATE   the file; one that is empty becomes a machine of the boards in
   NVML_STAND_IN_BOARDS  names of boards, with commas
   NVML_STAND_IN_NUMBER  of the machine, in UUIDs: no two machines of a cluster have the same
   NVML_STAND_IN_FAULTS  rules with semicolons, each "<function or *> <first> <last> <action> <value>": the calls from the
                         first to the last (counted by each rule from 1, the initialisation included) "fail" with the status
                         <value>, are "slow" by <value> milliseconds, or are the process's last, which is killed ("kill",
                         0) when they have had their effect. */

#define _POSIX_C_SOURCE 200809L
#define _DEFAULT_SOURCE

#include "machine.h"

#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

enum { RULES = 8 };

struct rule {
    char function[64], action[8];
    unsigned first, last, value, seen;
};

static struct machine *shared; /* the file, mapped; NULL before the first initialisation */
static int file = -1;
static unsigned users; /* initialisations without their shutdown */
static struct rule rules[RULES];
static unsigned rule_count;
static bool last_call;
static pthread_mutex_t calls = PTHREAD_MUTEX_INITIALIZER; /* a lock on the file is the process's, not a thread's */

static bool is_action(const char *word) {
    return strcmp(word, "fail") == 0 || strcmp(word, "slow") == 0 || strcmp(word, "kill") == 0;
}

static void read_rules(void) {
    rule_count = 0;
    for (const char *text = getenv("NVML_STAND_IN_FAULTS"); text != NULL && *text != '\0'; rule_count++) {
        struct rule rule = {0};
        int fields = sscanf(text, " %63[^ ;] %u %u %7[a-z] %u", rule.function, &rule.first, &rule.last, rule.action,
                            &rule.value);
        if (rule_count == RULES || fields != 5 || !is_action(rule.action)) {
            fprintf(stderr, "NVML_STAND_IN_FAULTS: not a rule, or one more than %d: %s\n", RULES, text);
            abort();
        }
        rules[rule_count] = rule;
        text = strchr(text, ';');
        text = text == NULL ? NULL : text + 1;
    }
}

static enum status suffer(const char *function) {
    enum status status = SUCCESS;
    for (struct rule *rule = rules; rule < rules + rule_count; rule++) {
        if (strcmp(rule->function, "*") != 0 && strcmp(rule->function, function) != 0)
            continue;
        rule->seen++;
        if (rule->seen < rule->first || rule->seen > rule->last)
            continue;
        if (strcmp(rule->action, "kill") == 0)
            last_call = true;
        else if (strcmp(rule->action, "slow") == 0)
            nanosleep(&(struct timespec){rule->value / 1000, rule->value % 1000 * 1000000L}, NULL);
        else
            status = (enum status)rule->value;
    }
    return status;
}

enum status enter(const char *function) {
    pthread_mutex_lock(&calls);
    if (users == 0)
        read_rules();
    enum status status = suffer(function);
    if (status != SUCCESS)
        return status;
    if (users > 0)
        flock(file, LOCK_EX);
    else if (strcmp(function, "nvmlInitWithFlags") != 0)
        return UNINITIALIZED;
    return SUCCESS;
}

enum status leave(enum status status) {
    if (file >= 0)
        flock(file, LOCK_UN);
    if (last_call)
        raise(SIGKILL);
    pthread_mutex_unlock(&calls);
    return status;
}

struct machine *machine(void) { return shared; }

static bool set_up(const char *names, const char *number) {
    shared->number = number == NULL ? 0 : (unsigned)strtoul(number, NULL, 10);
    while (names != NULL && *names != '\0') {
        size_t length = strcspn(names, ",");
        unsigned board = 0;
        while (board < BOARD_COUNT &&
               (strlen(BOARDS[board].name) != length || strncmp(BOARDS[board].name, names, length) != 0))
            board++;
        if (board == BOARD_COUNT || shared->devices == DEVICES)
            return false;
        struct device *device = &shared->device[shared->devices];
        device->board = board;
        snprintf(device->uuid, UUID_SIZE, "GPU-%08x-0000-4000-8000-%012x", shared->number, ++shared->devices);
        names += length + (names[length] == ',');
    }
    return true;
}

enum status machine_open(void) {
    if (users > 0) {
        users++;
        return SUCCESS;
    }
    const char *path = getenv("NVML_STAND_IN_STATE");
    file = path == NULL ? -1 : open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    if (file < 0)
        return DRIVER_NOT_LOADED;
    flock(file, LOCK_EX);
    struct stat found;
    bool is_new = fstat(file, &found) == 0 && found.st_size == 0;
    if (is_new && ftruncate(file, sizeof *shared) != 0)
        return DRIVER_NOT_LOADED;
    void *mapped = mmap(NULL, sizeof *shared, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    if (mapped == MAP_FAILED)
        return DRIVER_NOT_LOADED;
    shared = mapped;
    if (is_new && !set_up(getenv("NVML_STAND_IN_BOARDS"), getenv("NVML_STAND_IN_NUMBER"))) {
        fprintf(stderr, "NVML_STAND_IN_BOARDS: an unknown board, or more than %d\n", DEVICES);
        abort();
    }
    users = 1;
    return SUCCESS;
}

enum status machine_close(void) {
    if (users == 0)
        return UNINITIALIZED;
    if (--users == 0) {
        munmap(shared, sizeof *shared);
        shared = NULL;
        close(file);
        file = -1;
    }
    return SUCCESS;
}
