/* What happens to the machine without NVML: resets, what ails a GPU, and processes that come and go. */

#include "handles.h"

#include <stdbool.h>
#include <string.h>

/* The GPU is reset: what was pending holds, what was cut is gone, and nothing ails it but rows that stay broken. */
EXPORT nvmlReturn_t stand_in_reset(handle device) {
    ENTER(device, DEVICE);
    it.device->mode = it.device->pending;
    uint64_t failed = it.device->ails[ROW_FAILED];
    memset(it.device->ails, 0, sizeof it.device->ails);
    it.device->ails[ROW_FAILED] = failed;
    memset(it.device->instances, 0, sizeof it.device->instances);
    return leave(SUCCESS);
}

/* Something is wrong with a GPU, by its index: it may be lost, and then has no handle. */
EXPORT nvmlReturn_t stand_in_ail(unsigned index, unsigned ailment, unsigned long long value) {
    enum status status = enter(__func__);
    if (status == SUCCESS && (index >= machine()->devices || ailment >= AILMENTS))
        status = INVALID_ARGUMENT;
    if (status == SUCCESS)
        machine()->device[index].ails[ailment] = value;
    return leave(status);
}

/* An event, of a GPU or, with ids below ~0, of a MIG instance. */
EXPORT nvmlReturn_t stand_in_event(unsigned index, unsigned long long type, unsigned long long data,
                                   unsigned gpu_instance, unsigned compute_instance) {
    enum status status = enter(__func__);
    if (status == SUCCESS && index >= machine()->devices)
        status = INVALID_ARGUMENT;
    if (status == SUCCESS)
        machine()->events[machine()->event_count++ % EVENTS] =
            (struct event){index, gpu_instance, compute_instance, type, data};
    return leave(status);
}

/* A process starts on a MIG device, or on a whole GPU; NVML lists it, or holds it back as it does with monitors. */
EXPORT nvmlReturn_t stand_in_run(handle device, unsigned pid, unsigned listed) {
    bool is_mig = kind_of(device) == MIG_DEVICE;
    ENTER(device, is_mig ? MIG_DEVICE : DEVICE);
    for (struct process *each = machine()->processes; each < machine()->processes + PROCESSES; each++) {
        if (each->pid != 0)
            continue;
        *each = (struct process){.pid = pid, .listed = listed, .device = device_index(&it)};
        each->gpu_instance = is_mig ? gpu_instance_id(&it) : ~0U;
        each->compute_instance = is_mig ? compute_instance_id(&it) : ~0U;
        return leave(SUCCESS);
    }
    return leave(INSUFFICIENT_RESOURCES);
}

/* A process ends, wherever it ran. */
EXPORT nvmlReturn_t stand_in_end(unsigned pid) {
    enum status status = enter(__func__);
    for (unsigned each = 0; status == SUCCESS && each < PROCESSES; each++)
        if (machine()->processes[each].pid == pid)
            machine()->processes[each].pid = 0;
    return leave(status);
}
