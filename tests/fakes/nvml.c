/* A stand-in for the driver's libnvidia-ml.so.1: the calls that lorapod makes, answered from the file that $FAKE_NVML names.
 * Its first line: status of nvmlInit, driver, CUDA as 12080. Each further line is a GPU:
 * name|uuid|total|free|major|minor|mode of MIG (-1: not supported)|virtualization|slices|bytes of a slice */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define NOT_SUPPORTED 3
#define NOT_FOUND 6
#define MOST 16

typedef struct { char name[96], uuid[96]; unsigned long long total, free; int major, minor, mig, virt, slices; unsigned long long slice; } Gpu;
typedef struct { unsigned long long total, free, used; } Memory;
typedef struct { Gpu *gpu; int slice; } Handle;

static Gpu gpus[MOST];
static Handle whole[MOST], pieces[MOST][8];
static int count, cuda;
static char driver[96];

int nvmlInitWithFlags(unsigned flags) {
    char line[512];
    int status = 0;
    FILE *file = fopen(getenv("FAKE_NVML"), "r");
    count = 0;
    if (!file) return 9;
    if (fgets(line, sizeof line, file)) sscanf(line, "%d %95s %d", &status, driver, &cuda);
    while (count < MOST && fgets(line, sizeof line, file)) {
        Gpu *g = &gpus[count];
        if (sscanf(line, "%95[^|]|%95[^|]|%llu|%llu|%d|%d|%d|%d|%d|%llu", g->name, g->uuid, &g->total, &g->free, &g->major,
                   &g->minor, &g->mig, &g->virt, &g->slices, &g->slice) == 10) {
            whole[count].gpu = g; whole[count].slice = -1;
            count++;
        }
    }
    fclose(file);
    return status;
}
int nvmlInit_v2(void) { return nvmlInitWithFlags(0); }
int nvmlShutdown(void) { return 0; }
const char *nvmlErrorString(int status) { return status == 15 ? "GPU is lost" : "Unknown Error"; }
int nvmlSystemGetDriverVersion(char *out, unsigned size) { snprintf(out, size, "%s", driver); return 0; }
int nvmlSystemGetCudaDriverVersion(int *out) { *out = cuda; return cuda ? 0 : NOT_SUPPORTED; }
int nvmlSystemGetCudaDriverVersion_v2(int *out) { return nvmlSystemGetCudaDriverVersion(out); }
int nvmlDeviceGetCount_v2(unsigned *out) { *out = count; return 0; }
int nvmlDeviceGetHandleByIndex_v2(unsigned i, Handle **out) { if ((int)i >= count) return 2; *out = &whole[i]; return 0; }
int nvmlDeviceGetName(Handle *h, char *out, unsigned size) {
    if (h->slice < 0) snprintf(out, size, "%s", h->gpu->name);
    else snprintf(out, size, "%s MIG 1g.%dgb", h->gpu->name, (int)(h->gpu->slice >> 30));
    return 0;
}
int nvmlDeviceGetUUID(Handle *h, char *out, unsigned size) {
    snprintf(out, size, h->slice < 0 ? "%s" : "MIG-%s-%d", h->gpu->uuid, h->slice);
    return 0;
}
int nvmlDeviceGetCudaComputeCapability(Handle *h, int *major, int *minor) {
    *major = h->gpu->major; *minor = h->gpu->minor;
    return 0;
}
int nvmlDeviceGetMemoryInfo(Handle *h, Memory *out) {
    if (h->slice >= 0) { out->total = out->free = h->gpu->slice; out->used = 0; return 0; }
    if (!h->gpu->total) return NOT_SUPPORTED;
    if (h->gpu->mig == 1) return 4; /* no permission: from inside a container the divided GPU itself is closed */
    out->total = h->gpu->total; out->free = h->gpu->free; out->used = out->total - out->free;
    return 0;
}
int nvmlDeviceGetVirtualizationMode(Handle *h, unsigned *out) { *out = h->gpu->virt; return 0; }
int nvmlDeviceGetMigMode(Handle *h, unsigned *now, unsigned *then) {
    if (h->gpu->mig < 0) return NOT_SUPPORTED;
    *now = *then = h->gpu->mig;
    return 0;
}
int nvmlDeviceGetMaxMigDeviceCount(Handle *h, unsigned *out) { *out = h->gpu->mig < 0 ? 0 : 7; return 0; }
int nvmlDeviceGetMigDeviceHandleByIndex(Handle *h, unsigned i, Handle **out) {
    int of = h - whole;
    if ((int)i >= h->gpu->slices) return NOT_FOUND;
    pieces[of][i].gpu = h->gpu; pieces[of][i].slice = i;
    *out = &pieces[of][i];
    return 0;
}
