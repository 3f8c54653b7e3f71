/* A stand-in for libnvidia-ml.so.1: the system, whole GPUs and their MIG mode, as nvidia-ml-py asks for them.

   Signatures, structures and statuses are those of nvml.h. */

#include "handles.h"

#include <stdbool.h>
#include <stdio.h>
#include <string.h>

struct process_info {
    unsigned pid;
    unsigned long long used_memory;
    unsigned gpu_instance, compute_instance;
};

struct pci_info {
    char bus_id_legacy[16];
    unsigned domain, bus, device, pci_device_id, pci_sub_system_id;
    char bus_id[32];
};

struct utilization {
    unsigned gpu, memory;
};

struct memory {
    unsigned long long total, free, used;
};

static bool is_cut(const struct target *it) {
    for (unsigned each = 1; each < GPU_INSTANCES; each++)
        if (it->device->instances[each].serial != 0)
            return true;
    return false;
}

static bool is_used(const struct target *it) {
    for (const struct process *each = machine()->processes; each < machine()->processes + PROCESSES; each++)
        if (each->pid != 0 && each->device == device_index(it))
            return true;
    return false;
}

/* The library and the system */

EXPORT nvmlReturn_t nvmlInitWithFlags(unsigned flags) {
    (void)flags;
    enum status status = enter(__func__);
    return leave(status == SUCCESS ? machine_open() : status);
}

EXPORT nvmlReturn_t nvmlShutdown(void) {
    enum status fault = enter(__func__);
    enum status closed = machine_close(); /* a lost GPU keeps no library open */
    return leave(fault != SUCCESS ? fault : closed);
}

EXPORT const char *nvmlErrorString(nvmlReturn_t status) {
    switch (status) { /* those that the bindings have no text for */
    case IN_USE:
        return "In use by another client";
    case INSUFFICIENT_RESOURCES:
        return "Insufficient Resources";
    default:
        return "Unknown Error";
    }
}

EXPORT nvmlReturn_t nvmlSystemGetDriverVersion(char *version, unsigned size) {
    enum status status = enter(__func__);
    return leave(status == SUCCESS ? copy_text(version, size, "580.0") : status);
}

EXPORT nvmlReturn_t nvmlDeviceGetCount_v2(unsigned *count) {
    enum status status = enter(__func__);
    if (status == SUCCESS)
        *count = machine()->devices;
    return leave(status);
}

/* Devices */

EXPORT nvmlReturn_t nvmlDeviceGetHandleByIndex_v2(unsigned index, handle *device) {
    enum status status = enter(__func__);
    if (status == SUCCESS && index >= machine()->devices)
        status = INVALID_ARGUMENT;
    if (status == SUCCESS)
        *device = make_handle(DEVICE, &machine()->device[index], 0);
    return leave(status);
}

EXPORT nvmlReturn_t nvmlDeviceGetHandleByUUID(const char *uuid, handle *device) {
    enum status status = enter(__func__);
    if (status != SUCCESS)
        return leave(status);
    for (unsigned index = 0; index < machine()->devices; index++) {
        if (machine()->device[index].ails[LOST] != 0)
            return leave(GPU_IS_LOST); /* whichever is asked for */
        *device = make_handle(DEVICE, &machine()->device[index], 0);
        if (strcmp(machine()->device[index].uuid, uuid) == 0)
            return leave(SUCCESS);
    }
    return leave(NOT_FOUND);
}

EXPORT nvmlReturn_t nvmlDeviceGetName(handle device, char *name, unsigned size) {
    ENTER(device, DEVICE);
    return leave(copy_text(name, size, it.board->product));
}

EXPORT nvmlReturn_t nvmlDeviceGetUUID(handle device, char *uuid, unsigned size) {
    bool is_mig = kind_of(device) == MIG_DEVICE;
    ENTER(device, is_mig ? MIG_DEVICE : DEVICE);
    return leave(copy_text(uuid, size, is_mig ? it.compute->uuid : it.device->uuid));
}

EXPORT nvmlReturn_t nvmlDeviceGetMinorNumber(handle device, unsigned *minor) {
    ENTER(device, DEVICE);
    *minor = device_index(&it);
    return leave(SUCCESS);
}

EXPORT nvmlReturn_t nvmlDeviceGetPciInfo_v3(handle device, struct pci_info *info) {
    ENTER(device, DEVICE);
    *info = (struct pci_info){.pci_device_id = it.board->pci_device << 16 | 0x10de};
    return leave(SUCCESS);
}

EXPORT nvmlReturn_t nvmlDeviceGetMemoryInfo(handle device, struct memory *memory) {
    bool is_mig = kind_of(device) == MIG_DEVICE;
    ENTER(device, is_mig ? MIG_DEVICE : DEVICE);
    unsigned long long mib = is_mig ? it.board->profiles[it.gpu->profile].memory_mib : it.board->memory_mib;
    unsigned long long bytes = mib << 20;
    *memory = (struct memory){.total = bytes, .free = bytes};
    return leave(SUCCESS);
}

EXPORT nvmlReturn_t nvmlDeviceGetArchitecture(handle device, unsigned *architecture) {
    ENTER(device, DEVICE);
    *architecture = it.board->architecture;
    return leave(SUCCESS);
}

EXPORT nvmlReturn_t nvmlDeviceGetCudaComputeCapability(handle device, int *major, int *minor) {
    ENTER(device, DEVICE);
    *major = (int)it.board->major;
    *minor = (int)it.board->minor;
    return leave(SUCCESS);
}

EXPORT nvmlReturn_t nvmlDeviceGetNumGpuCores(handle device, unsigned *cores) {
    ENTER(device, DEVICE);
    *cores = it.board->sms * it.board->cores_per_sm;
    return leave(SUCCESS);
}

EXPORT nvmlReturn_t nvmlDeviceGetUtilizationRates(handle device, struct utilization *utilization) {
    ENTER(device, DEVICE);
    REQUIRE(it.device->mode == 0, NOT_SUPPORTED);
    *utilization = (struct utilization){0};
    return leave(SUCCESS);
}

EXPORT nvmlReturn_t nvmlDeviceGetJpgUtilization(handle device, unsigned *utilization, unsigned *sampling_period_us) {
    ENTER(device, DEVICE);
    REQUIRE(it.device->mode == 0, NOT_SUPPORTED);
    *utilization = 0;
    *sampling_period_us = 167000;
    return leave(SUCCESS);
}

EXPORT nvmlReturn_t nvmlDeviceGetComputeRunningProcesses_v3(handle device, unsigned *count, struct process_info *infos) {
    ENTER(device, DEVICE);
    unsigned room = infos == NULL ? 0 : *count;
    *count = 0;
    for (const struct process *each = machine()->processes; each < machine()->processes + PROCESSES; each++)
        if (each->pid != 0 && each->listed && each->device == device_index(&it)) {
            if (*count < room)
                infos[*count] = (struct process_info){each->pid, 1 << 20, each->gpu_instance, each->compute_instance};
            ++*count;
        }
    return leave(*count > room ? INSUFFICIENT_SIZE : SUCCESS);
}

/* The mode */

EXPORT nvmlReturn_t nvmlDeviceGetMigMode(handle device, unsigned *mode, unsigned *pending) {
    ENTER(device, DEVICE);
    *mode = it.device->mode;
    *pending = it.device->pending;
    return leave(SUCCESS);
}

EXPORT nvmlReturn_t nvmlDeviceSetMigMode(handle device, unsigned mode, nvmlReturn_t *activation) {
    ENTER(device, DEVICE);
    REQUIRE(mode <= 1, INVALID_ARGUMENT);
    REQUIRE(!is_cut(&it), IN_USE);
    it.device->pending = mode;
    *activation = SUCCESS;
    if (it.board->architecture < HOPPER && mode != it.device->mode)
        *activation = RESET_REQUIRED;
    else if (is_used(&it))
        *activation = IN_USE;
    else
        it.device->mode = mode;
    return leave(SUCCESS);
}
