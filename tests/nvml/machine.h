/* What the stand-in knows: boards as rows (made from the core's tables), and a machine of them in a file. */

#ifndef MACHINE_H
#define MACHINE_H

#include <stdint.h>

enum status { /* nvmlReturn_t, those that are used */
    SUCCESS = 0,
    UNINITIALIZED = 1,
    INVALID_ARGUMENT = 2,
    NOT_SUPPORTED = 3,
    NOT_FOUND = 6,
    INSUFFICIENT_SIZE = 7,
    DRIVER_NOT_LOADED = 9,
    TIMEOUT = 10,
    GPU_IS_LOST = 15,
    RESET_REQUIRED = 16,
    IN_USE = 19,
    INSUFFICIENT_RESOURCES = 23,
    VERSION_MISMATCH = 25,
};

enum { DEVICES = 8, GPU_INSTANCES = 8, COMPUTE_INSTANCES = 8, PROCESSES = 16, PROFILES = 8, UUID_SIZE = 48 };
enum { EVENTS = 64, EVENT_SETS = 4 };
enum { HOPPER = 9 }; /* nvmlDeviceArchitecture_t: from here on MIG is switched without a reset */

struct profile {
    unsigned kind, id; /* NVML_GPU_INSTANCE_PROFILE_*, and the id that the driver gives it */
    const char *name;
    unsigned slices, memory_slices, max, sms, copy_engines, jpegs, media;
    uint64_t memory_mib;
    unsigned start_count, starts[8];
};

struct board {
    const char *name, *product;
    unsigned pci_device, architecture, major, minor, sms, cores_per_sm, memory_slices, profile_count;
    uint64_t memory_mib;
    struct profile profiles[PROFILES];
};

/* Slots; one with serial 0 is free. Serials are never used again, so a handle of what is gone is invalid. */
struct compute_instance {
    uint32_t serial;
    unsigned profile; /* NVML_COMPUTE_INSTANCE_PROFILE_* */
    unsigned slices;
    char uuid[UUID_SIZE];
};

struct gpu_instance {
    uint32_t serial;
    unsigned profile; /* index into the board's */
    unsigned start;
    struct compute_instance compute[COMPUTE_INSTANCES];
};

/* What can be wrong with a GPU, as numbers that NVML tells; 0: nothing. */
enum ailment { LOST, RECOVERY_ACTION, UNCORRECTED, ROW_PENDING, ROW_FAILED, PAGE_PENDING, CLOCKS, AILMENTS };

struct device {
    unsigned board; /* index into BOARDS */
    unsigned mode, pending;
    char uuid[UUID_SIZE];
    uint64_t ails[AILMENTS];
    struct gpu_instance instances[GPU_INSTANCES]; /* the index is the instance's id */
};

struct process {
    unsigned pid, device, gpu_instance, compute_instance; /* pid 0: a free slot; ids of ~0: the whole GPU */
    unsigned listed;                                      /* NVML does not list all clients */
};

struct event {
    unsigned device, gpu_instance, compute_instance;
    uint64_t type, data;
};

struct machine {
    unsigned number, devices;
    uint64_t event_count; /* of all that there ever were; the last EVENTS are kept */
    struct event events[EVENTS];
    uint32_t last_serial;
    struct device device[DEVICES];
    struct process processes[PROCESSES];
};

extern const struct board BOARDS[];
extern const unsigned BOARD_COUNT;

/* Every call of the library is between these two. `enter` takes the machine's lock and gives what the call shall
   return at once (a fault, or UNINITIALIZED); `leave` gives the lock back and returns its argument, unless the process
   shall end there. */
enum status enter(const char *function);
enum status leave(enum status status);

/* The machine; valid between `enter` and `leave`. */
struct machine *machine(void);

/* Open and close the machine's file, counted as NVML counts. Called between `enter` and `leave`. */
enum status machine_open(void);
enum status machine_close(void);

#endif
