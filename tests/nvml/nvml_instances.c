/* A stand-in for libnvidia-ml.so.1: GPU instances, compute instances and MIG devices.

   Signatures, structures and statuses are those of nvml.h. */

#include "handles.h"

#include <stdbool.h>
#include <stdio.h>
#include <string.h>

struct placement {
    unsigned start, size;
};

struct gpu_instance_profile_v2 {
    unsigned version, id, is_p2p_supported, slice_count, instance_count, multiprocessor_count, copy_engine_count,
        decoder_count, encoder_count, jpeg_count, ofa_count;
    unsigned long long memory_mib;
    char name[96];
};

struct gpu_instance_info {
    handle device;
    unsigned id, profile_id;
    struct placement placement;
};

struct compute_instance_profile_v2 {
    unsigned version, id, slice_count, instance_count, multiprocessor_count, copy_engines, decoders, encoders, jpegs,
        ofas;
    char name[96];
};

struct attributes {
    unsigned multiprocessor_count, copy_engine_count, decoder_count, encoder_count, jpeg_count, ofa_count,
        gpu_instance_slice_count, compute_instance_slice_count;
    unsigned long long memory_mib;
};

/* Versioned structures tell their size in the low bits of the version, and callers rely on it. */
enum { GPU_PROFILE_V2 = 0x02000098, COMPUTE_PROFILE_V2 = 0x02000088 };
_Static_assert(sizeof(struct gpu_instance_profile_v2) == (GPU_PROFILE_V2 & 0xffffff), "nvmlGpuInstanceProfileInfo_v2_t");
_Static_assert(sizeof(struct compute_instance_profile_v2) == (COMPUTE_PROFILE_V2 & 0xffffff),
               "nvmlComputeInstanceProfileInfo_v2_t");

static const unsigned COMPUTE_SLICES[] = {1, 2, 3, 4, 7}; /* by NVML_COMPUTE_INSTANCE_PROFILE_* */
enum { COMPUTE_PROFILES = sizeof COMPUTE_SLICES / sizeof *COMPUTE_SLICES };

static const struct profile *profile_by(const struct board *board, unsigned id) {
    for (unsigned each = 0; each < board->profile_count; each++)
        if (board->profiles[each].id == id)
            return &board->profiles[each];
    return NULL;
}

static const struct profile *profile_of(const struct target *it, const struct gpu_instance *gpu) {
    return &it->board->profiles[gpu->profile];
}

static bool may_start_at(const struct profile *profile, unsigned start) {
    for (unsigned each = 0; each < profile->start_count; each++)
        if (profile->starts[each] == start)
            return true;
    return false;
}

static bool has_room(const struct target *it, const struct profile *wanted, unsigned start) {
    unsigned same = 0;
    for (unsigned each = 1; each < GPU_INSTANCES; each++) {
        const struct gpu_instance *gpu = &it->device->instances[each];
        if (gpu->serial == 0)
            continue;
        const struct profile *profile = profile_of(it, gpu);
        if (start < gpu->start + profile->memory_slices && gpu->start < start + wanted->memory_slices)
            return false;
        if (profile->media && wanted->media) /* there is one set of media extensions */
            return false;
        same += profile == wanted;
    }
    return same < wanted->max;
}

static bool is_used(const struct target *it) {
    for (const struct process *each = machine()->processes; each < machine()->processes + PROCESSES; each++)
        if (each->pid != 0 && each->device == device_index(it) && each->gpu_instance == gpu_instance_id(it) &&
            each->compute_instance == compute_instance_id(it))
            return true;
    return false;
}

/* GPU instances */

EXPORT nvmlReturn_t nvmlDeviceGetGpuInstanceProfileInfoV(handle device, unsigned kind,
                                                         struct gpu_instance_profile_v2 *info) {
    ENTER(device, DEVICE);
    REQUIRE(info->version == GPU_PROFILE_V2, VERSION_MISMATCH);
    for (unsigned each = 0; each < it.board->profile_count; each++) {
        const struct profile *profile = &it.board->profiles[each];
        if (profile->kind != kind)
            continue;
        *info = (struct gpu_instance_profile_v2){
            .version = GPU_PROFILE_V2,
            .id = profile->id,
            .slice_count = profile->slices,
            .instance_count = profile->max,
            .multiprocessor_count = profile->sms,
            .copy_engine_count = profile->copy_engines,
            .jpeg_count = profile->jpegs,
            .ofa_count = profile->media,
            .memory_mib = profile->memory_mib,
        };
        return leave(copy_text(info->name, sizeof info->name, profile->name));
    }
    return leave(NOT_SUPPORTED);
}

EXPORT nvmlReturn_t nvmlDeviceGetGpuInstancePossiblePlacements_v2(handle device, unsigned id,
                                                                  struct placement *placements, unsigned *count) {
    ENTER(device, DEVICE);
    const struct profile *profile = profile_by(it.board, id);
    REQUIRE(profile != NULL, INVALID_ARGUMENT);
    *count = profile->start_count;
    for (unsigned each = 0; placements != NULL && each < profile->start_count; each++)
        placements[each] = (struct placement){profile->starts[each], profile->memory_slices};
    return leave(SUCCESS);
}

EXPORT nvmlReturn_t nvmlDeviceCreateGpuInstanceWithPlacement(handle device, unsigned id,
                                                             const struct placement *placement, handle *created) {
    ENTER(device, DEVICE);
    const struct profile *profile = profile_by(it.board, id);
    REQUIRE(it.device->mode == 1, NOT_SUPPORTED);
    REQUIRE(profile != NULL && placement->size == profile->memory_slices, INVALID_ARGUMENT);
    REQUIRE(may_start_at(profile, placement->start) && has_room(&it, profile, placement->start),
            INSUFFICIENT_RESOURCES);
    unsigned slot = 1;
    while (it.device->instances[slot].serial != 0) /* legal layouts have seven at most */
        slot++;
    it.device->instances[slot] = (struct gpu_instance){
        .serial = ++machine()->last_serial,
        .profile = (unsigned)(profile - it.board->profiles),
        .start = placement->start,
    };
    *created = make_handle(GPU_INSTANCE, it.device, machine()->last_serial);
    return leave(SUCCESS);
}

EXPORT nvmlReturn_t nvmlDeviceGetGpuInstances(handle device, unsigned id, handle *found, unsigned *count) {
    ENTER(device, DEVICE);
    const struct profile *profile = profile_by(it.board, id);
    REQUIRE(it.device->mode == 1, NOT_SUPPORTED);
    REQUIRE(profile != NULL, INVALID_ARGUMENT);
    *count = 0; /* the caller's array has room for the profile's maximum */
    for (unsigned each = 1; each < GPU_INSTANCES; each++) {
        const struct gpu_instance *gpu = &it.device->instances[each];
        if (gpu->serial != 0 && profile_of(&it, gpu) == profile)
            found[(*count)++] = make_handle(GPU_INSTANCE, it.device, gpu->serial);
    }
    return leave(SUCCESS);
}

EXPORT nvmlReturn_t nvmlDeviceGetGpuInstanceById(handle device, unsigned id, handle *found) {
    ENTER(device, DEVICE);
    REQUIRE(it.device->mode == 1, NOT_SUPPORTED);
    REQUIRE(id < GPU_INSTANCES && it.device->instances[id].serial != 0, NOT_FOUND);
    *found = make_handle(GPU_INSTANCE, it.device, it.device->instances[id].serial);
    return leave(SUCCESS);
}

EXPORT nvmlReturn_t nvmlGpuInstanceGetInfo(handle instance, struct gpu_instance_info *info) {
    ENTER(instance, GPU_INSTANCE);
    const struct profile *profile = profile_of(&it, it.gpu);
    *info = (struct gpu_instance_info){
        .device = make_handle(DEVICE, it.device, 0),
        .id = gpu_instance_id(&it),
        .profile_id = profile->id,
        .placement = {it.gpu->start, profile->memory_slices},
    };
    return leave(SUCCESS);
}

EXPORT nvmlReturn_t nvmlGpuInstanceDestroy(handle instance) {
    ENTER(instance, GPU_INSTANCE);
    for (unsigned each = 0; each < COMPUTE_INSTANCES; each++)
        REQUIRE(it.gpu->compute[each].serial == 0, IN_USE);
    it.gpu->serial = 0;
    return leave(SUCCESS);
}

/* Compute instances */

EXPORT nvmlReturn_t nvmlGpuInstanceGetComputeInstanceProfileInfoV(handle instance, unsigned kind, unsigned engines,
                                                                  struct compute_instance_profile_v2 *info) {
    ENTER(instance, GPU_INSTANCE);
    const struct profile *profile = profile_of(&it, it.gpu);
    REQUIRE(info->version == COMPUTE_PROFILE_V2, VERSION_MISMATCH);
    REQUIRE(engines == 0, INVALID_ARGUMENT);
    REQUIRE(kind < COMPUTE_PROFILES && COMPUTE_SLICES[kind] <= profile->slices, NOT_SUPPORTED);
    *info = (struct compute_instance_profile_v2){
        .version = COMPUTE_PROFILE_V2,
        .id = kind,
        .slice_count = COMPUTE_SLICES[kind],
        .instance_count = profile->slices / COMPUTE_SLICES[kind],
        .multiprocessor_count = profile->sms * COMPUTE_SLICES[kind] / profile->slices,
    };
    return leave(SUCCESS);
}

EXPORT nvmlReturn_t nvmlGpuInstanceCreateComputeInstance(handle instance, unsigned id, handle *created) {
    ENTER(instance, GPU_INSTANCE);
    REQUIRE(id < COMPUTE_PROFILES, INVALID_ARGUMENT);
    unsigned used = 0, slot = COMPUTE_INSTANCES;
    for (unsigned each = 0; each < COMPUTE_INSTANCES; each++)
        if (it.gpu->compute[each].serial != 0)
            used += it.gpu->compute[each].slices;
        else if (slot == COMPUTE_INSTANCES)
            slot = each;
    REQUIRE(used + COMPUTE_SLICES[id] <= profile_of(&it, it.gpu)->slices, INSUFFICIENT_RESOURCES);
    struct compute_instance *compute = &it.gpu->compute[slot];
    *compute = (struct compute_instance){
        .serial = ++machine()->last_serial, .profile = id, .slices = COMPUTE_SLICES[id]};
    snprintf(compute->uuid, UUID_SIZE, "MIG-%08x-0000-5000-8000-%012x", machine()->number, compute->serial);
    *created = make_handle(COMPUTE_INSTANCE, it.device, compute->serial);
    return leave(SUCCESS);
}

EXPORT nvmlReturn_t nvmlGpuInstanceGetComputeInstances(handle instance, unsigned id, handle *found, unsigned *count) {
    ENTER(instance, GPU_INSTANCE);
    *count = 0;
    for (unsigned each = 0; each < COMPUTE_INSTANCES; each++)
        if (it.gpu->compute[each].serial != 0 && it.gpu->compute[each].profile == id)
            found[(*count)++] = make_handle(COMPUTE_INSTANCE, it.device, it.gpu->compute[each].serial);
    return leave(SUCCESS);
}

EXPORT nvmlReturn_t nvmlGpuInstanceGetComputeInstanceById(handle instance, unsigned id, handle *found) {
    ENTER(instance, GPU_INSTANCE);
    REQUIRE(id < COMPUTE_INSTANCES && it.gpu->compute[id].serial != 0, NOT_FOUND);
    *found = make_handle(COMPUTE_INSTANCE, it.device, it.gpu->compute[id].serial);
    return leave(SUCCESS);
}

EXPORT nvmlReturn_t nvmlComputeInstanceDestroy(handle instance) {
    ENTER(instance, COMPUTE_INSTANCE);
    REQUIRE(!is_used(&it), IN_USE);
    it.compute->serial = 0;
    return leave(SUCCESS);
}

/* MIG devices: what a process sees of a compute instance */

EXPORT nvmlReturn_t nvmlDeviceGetMaxMigDeviceCount(handle device, unsigned *count) {
    ENTER(device, DEVICE);
    *count = it.device->mode == 1 ? it.board->profiles[0].slices : 0;
    return leave(SUCCESS);
}

EXPORT nvmlReturn_t nvmlDeviceGetMigDeviceHandleByIndex(handle device, unsigned index, handle *found) {
    ENTER(device, DEVICE);
    for (unsigned gpu = 1; gpu < GPU_INSTANCES; gpu++)
        for (unsigned compute = 0; it.device->instances[gpu].serial != 0 && compute < COMPUTE_INSTANCES; compute++) {
            uint32_t serial = it.device->instances[gpu].compute[compute].serial;
            if (serial == 0 || index-- > 0)
                continue;
            *found = make_handle(MIG_DEVICE, it.device, serial);
            return leave(SUCCESS);
        }
    return leave(NOT_FOUND);
}

EXPORT nvmlReturn_t nvmlDeviceGetGpuInstanceId(handle device, unsigned *id) {
    ENTER(device, MIG_DEVICE);
    *id = gpu_instance_id(&it);
    return leave(SUCCESS);
}

EXPORT nvmlReturn_t nvmlDeviceGetComputeInstanceId(handle device, unsigned *id) {
    ENTER(device, MIG_DEVICE);
    *id = compute_instance_id(&it);
    return leave(SUCCESS);
}

/* What the unprivileged are told of one. The optical flow accelerator comes with a variant, and with the whole GPU. */
EXPORT nvmlReturn_t nvmlDeviceGetAttributes_v2(handle device, struct attributes *attributes) {
    ENTER(device, MIG_DEVICE);
    const struct profile *profile = profile_of(&it, it.gpu);
    *attributes = (struct attributes){
        .multiprocessor_count = profile->sms * it.compute->slices / profile->slices,
        .copy_engine_count = profile->copy_engines,
        .jpeg_count = profile->jpegs,
        .ofa_count = profile->media || profile->slices == it.board->profiles[0].slices,
        .gpu_instance_slice_count = profile->slices,
        .compute_instance_slice_count = it.compute->slices,
        .memory_mib = profile->memory_mib,
    };
    return leave(SUCCESS);
}
