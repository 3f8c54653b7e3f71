/* A stand-in for libnvidia-ml.so.1: what NVML says of a GPU's health, and events.

   Signatures, structures and statuses are those of nvml.h. */

#define _POSIX_C_SOURCE 200809L

#include "handles.h"

#include <stdbool.h>
#include <stddef.h>
#include <time.h>

enum { POLL_MS = 2 };
enum { RECOVERY_ACTION_FIELD = 230, VALUE_UNSIGNED_INT = 1 }; /* NVML_FI_DEV_GET_GPU_RECOVERY_ACTION, nvmlValueType_t */
enum { VOLATILE = 0, UNCORRECTED_ERRORS = 1 };
static const unsigned long long SUPPORTED = 0x2 | 0x8; /* double-bit ECC errors, critical Xids */

struct field_value {
    unsigned field, scope;
    long long timestamp, latency_us;
    unsigned value_type;
    nvmlReturn_t status;
    union {
        unsigned as_unsigned;
        unsigned long long as_long;
    } value;
};

struct event_data {
    handle device;
    unsigned long long type, data;
    unsigned gpu_instance, compute_instance;
};

/* A process's own: what it listens to, and how many of the machine's events it has seen. */
struct event_set {
    bool used;
    uint64_t seen;
    unsigned long long types[DEVICES];
};

static struct event_set sets[EVENT_SETS];

static bool is_cut(const struct target *it) {
    for (unsigned each = 1; each < GPU_INSTANCES; each++)
        if (it->device->instances[each].serial != 0)
            return true;
    return false;
}

EXPORT nvmlReturn_t nvmlDeviceGetTotalEccErrors(handle device, unsigned type, unsigned counter,
                                                unsigned long long *count) {
    ENTER(device, DEVICE);
    REQUIRE(type == UNCORRECTED_ERRORS && counter == VOLATILE, NOT_SUPPORTED);
    *count = it.device->ails[UNCORRECTED];
    return leave(SUCCESS);
}

EXPORT nvmlReturn_t nvmlDeviceGetRemappedRows(handle device, unsigned *corrected, unsigned *uncorrected,
                                              unsigned *pending, unsigned *failed) {
    ENTER(device, DEVICE);
    REQUIRE(!is_cut(&it), NOT_SUPPORTED); /* "on MIG-enabled GPUs with active instances" */
    *corrected = *uncorrected = 0;
    *pending = it.device->ails[ROW_PENDING] != 0;
    *failed = it.device->ails[ROW_FAILED] != 0;
    return leave(SUCCESS);
}

EXPORT nvmlReturn_t nvmlDeviceGetRetiredPagesPendingStatus(handle device, unsigned *pending) {
    ENTER(device, DEVICE);
    *pending = it.device->ails[PAGE_PENDING] != 0;
    return leave(SUCCESS);
}

EXPORT nvmlReturn_t nvmlDeviceGetCurrentClocksEventReasons(handle device, unsigned long long *reasons) {
    ENTER(device, DEVICE);
    *reasons = it.device->ails[CLOCKS];
    return leave(SUCCESS);
}

EXPORT nvmlReturn_t nvmlDeviceGetFieldValues(handle device, int count, struct field_value *values) {
    ENTER(device, DEVICE);
    for (struct field_value *each = values; each < values + count; each++) {
        each->status = each->field == RECOVERY_ACTION_FIELD ? SUCCESS : NOT_SUPPORTED;
        each->value_type = VALUE_UNSIGNED_INT;
        each->value.as_unsigned = (unsigned)it.device->ails[RECOVERY_ACTION];
    }
    return leave(SUCCESS);
}

/* Events */

EXPORT nvmlReturn_t nvmlEventSetCreate(struct event_set **set) {
    enum status status = enter(__func__);
    if (status != SUCCESS)
        return leave(status);
    for (*set = sets; *set < sets + EVENT_SETS; ++*set)
        if (!(*set)->used) {
            **set = (struct event_set){.used = true, .seen = machine()->event_count};
            return leave(SUCCESS);
        }
    return leave(INSUFFICIENT_RESOURCES);
}

EXPORT nvmlReturn_t nvmlEventSetFree(struct event_set *set) {
    enum status status = enter(__func__);
    set->used = false;
    return leave(status);
}

EXPORT nvmlReturn_t nvmlDeviceGetSupportedEventTypes(handle device, unsigned long long *types) {
    ENTER(device, DEVICE);
    *types = SUPPORTED;
    return leave(SUCCESS);
}

EXPORT nvmlReturn_t nvmlDeviceRegisterEvents(handle device, unsigned long long types, struct event_set *set) {
    ENTER(device, DEVICE);
    REQUIRE((types & ~SUPPORTED) == 0, NOT_SUPPORTED);
    set->types[device_index(&it)] |= types;
    return leave(SUCCESS);
}

static bool next_event(struct event_set *set, struct event_data *data) {
    const struct machine *it = machine();
    if (it->event_count - set->seen > EVENTS)
        set->seen = it->event_count - EVENTS;
    while (set->seen < it->event_count) {
        const struct event *event = &it->events[set->seen++ % EVENTS];
        if ((set->types[event->device] & event->type) == 0)
            continue;
        *data = (struct event_data){make_handle(DEVICE, &it->device[event->device], 0), event->type, event->data,
                                    event->gpu_instance, event->compute_instance};
        return true;
    }
    return false;
}

/* Others may call meanwhile; only the first look counts for the faults. */
EXPORT nvmlReturn_t nvmlEventSetWait_v2(struct event_set *set, struct event_data *data, unsigned timeout_ms) {
    const char *function = __func__;
    for (unsigned waited = 0;; waited += POLL_MS, function = "") {
        enum status status = enter(function);
        bool is_there = status == SUCCESS && next_event(set, data);
        leave(status);
        if (is_there || status != SUCCESS || waited >= timeout_ms)
            return status != SUCCESS ? status : is_there ? SUCCESS : TIMEOUT;
        nanosleep(&(struct timespec){0, POLL_MS * 1000000L}, NULL);
    }
}
