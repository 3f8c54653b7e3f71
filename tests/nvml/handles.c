#include "handles.h"

#include <stdio.h>

enum kind kind_of(handle handle) { return (enum kind)((uintptr_t)handle >> 48); }

handle make_handle(enum kind kind, const struct device *device, uint32_t serial) {
    uintptr_t index = (uintptr_t)(device - machine()->device);
    return (handle)((uintptr_t)kind << 48 | index << 32 | serial);
}

enum status resolve(handle handle, enum kind kind, struct target *target) {
    uintptr_t bits = (uintptr_t)handle;
    uint32_t serial = (uint32_t)bits;
    if (bits >> 48 != kind || (bits >> 32 & 0xffff) >= machine()->devices)
        return INVALID_ARGUMENT;
    target->device = &machine()->device[bits >> 32 & 0xffff];
    target->board = &BOARDS[target->device->board];
    if (target->device->ails[LOST] != 0)
        return GPU_IS_LOST;
    if (kind == DEVICE)
        return SUCCESS;
    for (struct gpu_instance *gpu = target->device->instances; gpu < target->device->instances + GPU_INSTANCES; gpu++) {
        target->gpu = gpu;
        if (kind == GPU_INSTANCE && gpu->serial == serial)
            return SUCCESS;
        for (target->compute = gpu->compute; target->compute < gpu->compute + COMPUTE_INSTANCES; target->compute++)
            if (kind != GPU_INSTANCE && gpu->serial != 0 && target->compute->serial == serial)
                return SUCCESS;
    }
    return INVALID_ARGUMENT;
}

unsigned device_index(const struct target *it) { return (unsigned)(it->device - machine()->device); }

unsigned gpu_instance_id(const struct target *it) { return (unsigned)(it->gpu - it->device->instances); }

unsigned compute_instance_id(const struct target *it) { return (unsigned)(it->compute - it->gpu->compute); }

enum status copy_text(char *to, unsigned size, const char *text) {
    return (unsigned)snprintf(to, size, "%s", text) < size ? SUCCESS : INSUFFICIENT_SIZE;
}
