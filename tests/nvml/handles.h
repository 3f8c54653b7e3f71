/* Handles, what they lead to, and how every exported function begins. */

#ifndef HANDLES_H
#define HANDLES_H

#include "machine.h"

#define EXPORT __attribute__((visibility("default")))

typedef enum status nvmlReturn_t;

/* Opaque to callers: which kind, which device, which serial. */
typedef struct handle *handle;
enum kind { DEVICE = 1, GPU_INSTANCE, COMPUTE_INSTANCE, MIG_DEVICE };

/* What a handle leads to; the parts above its kind are set too. */
struct target {
    struct device *device;
    const struct board *board;
    struct gpu_instance *gpu;
    struct compute_instance *compute;
};

enum kind kind_of(handle handle);
handle make_handle(enum kind kind, const struct device *device, uint32_t serial);
enum status resolve(handle handle, enum kind kind, struct target *target);

unsigned device_index(const struct target *it);
unsigned gpu_instance_id(const struct target *it);
unsigned compute_instance_id(const struct target *it);

enum status copy_text(char *to, unsigned size, const char *text);

/* Begins a function: its faults, then what its handle leads to, as `it`. */
#define ENTER(handle, kind)                                                                                            \
    struct target it = {0};                                                                                            \
    enum status entered = enter(__func__);                                                                             \
    if (entered == SUCCESS)                                                                                            \
        entered = resolve(handle, kind, &it);                                                                          \
    if (entered != SUCCESS)                                                                                            \
    return leave(entered)

#define REQUIRE(condition, status)                                                                                     \
    if (!(condition))                                                                                                  \
    return leave(status)

#endif
