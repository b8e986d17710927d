/* The CUDA runtime and driver as far as torch asks them while every tensor on the GPU is a fake one: one H100, no work.
 * For benchmarks/gpu/imagined.py, which compiles this and preloads it. */
#include <string.h>
#include <driver_types.h>

int cudaGetDeviceCount(int *count) { *count = 1; return 0; }
int cudaGetDevice(int *device) { *device = 0; return 0; }
int cudaSetDevice(int device) { (void)device; return 0; }
int cudaDeviceGetStreamPriorityRange(int *least, int *greatest) { *least = 0; *greatest = -5; return 0; }
int cudaDriverGetVersion(int *version) { *version = 13000; return 0; }
int cudaRuntimeGetVersion(int *version) { *version = 13000; return 0; }
int cudaGetLastError(void) { return 0; }
int cudaPeekAtLastError(void) { return 0; }
int cudaStreamIsCapturing(void *stream, int *is_capturing) { (void)stream; *is_capturing = 0; return 0; }
int cudaDeviceSynchronize(void) { return 0; }

int cudaGetDeviceProperties(struct cudaDeviceProp *properties, int device) {
    (void)device;
    memset(properties, 0, sizeof *properties);
    strcpy(properties->name, "imagined H100");
    properties->major = 9;
    properties->multiProcessorCount = 132;
    properties->warpSize = 32;
    properties->maxThreadsPerBlock = 1024;
    properties->maxThreadsPerMultiProcessor = 2048;
    properties->sharedMemPerBlock = 48 << 10;
    properties->sharedMemPerBlockOptin = 227 << 10;
    properties->regsPerBlock = 65536;
    properties->totalGlobalMem = 80ul << 30;
    return 0;
}
int cudaGetDeviceProperties_v2(struct cudaDeviceProp *properties, int device) {
    return cudaGetDeviceProperties(properties, device);
}

/* No context was ever made: torch then keeps no streams for the backward pass. */
int cuDevicePrimaryCtxGetState(int device, unsigned *flags, int *is_active) {
    (void)device;
    *flags = *is_active = 0;
    return 0;
}
static int refuse(void) { return 1; }
int cudaGetDriverEntryPointByVersion(const char *name, void **function, unsigned version, unsigned long flags, int *found) {
    (void)version, (void)flags;
    *function = strcmp(name, "cuDevicePrimaryCtxGetState") ? (void *)refuse : (void *)cuDevicePrimaryCtxGetState;
    if (found) *found = 0;
    return 0;
}
int cudaGetDriverEntryPoint(const char *name, void **function, unsigned long flags, int *found) {
    return cudaGetDriverEntryPointByVersion(name, function, 0, flags, found);
}
