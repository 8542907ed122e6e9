// A card that is pretended on a processor: as much of NVIDIA's driver as CubeCL needs to keep tensors, and of cuBLASLt as products need.
//
// Nothing is done when it is asked for. An operation waits until something that the program waits for depends on it, by its stream or by
// events, and then only what that depends on is done first. So whatever is not ordered by the rules of streams and events comes out wrong.
// The variable PRETEND names one fault.

#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define DEMAND(condition)                                                                                                                \
    do {                                                                                                                                  \
        if (!(condition)) {                                                                                                               \
            fprintf(stderr, "pretended card, line %d: not %s\n", __LINE__, #condition);                                                  \
            abort();                                                                                                                      \
        }                                                                                                                                 \
    } while (0)

enum { SUCCESS = 0, INVALID_CONTEXT = 201, INVALID_HANDLE = 400, UNKNOWN = 999, NOT_SUPPORTED = 15, EXECUTION_FAILED = 13 };

static int pretends(const char *fault) {
    const char *name = getenv("PRETEND");
    return name && !strcmp(name, fault);
}

// Operations and what they wait for.

typedef struct Operation Operation;
typedef struct {
    Operation **all;
    int count;
} Operations;
struct Operation {
    void (*act)(void *);
    void *argument;
    Operations first;
    int done;
};
typedef struct {
    Operations last;
} Stream;
typedef struct {
    Operations held;
} Event;

static pthread_mutex_t lock = PTHREAD_RECURSIVE_MUTEX_INITIALIZER_NP;
static Stream *streams[256];
static int stream_count;
static Stream default_stream;
static int context;
static __thread void *current;

static void add(Operations *to, Operations from) {
    for (int i = 0; i < from.count; i++) {
        if (from.all[i]->done) continue;
        to->all = realloc(to->all, sizeof(Operation *) * (to->count + 1));
        to->all[to->count++] = from.all[i];
    }
}
static void finish(Operations operations) {
    for (int i = 0; i < operations.count; i++) {
        Operation *operation = operations.all[i];
        if (operation->done) continue;
        operation->done = 1;
        finish(operation->first);
        operation->act(operation->argument);
    }
}
static void enqueue(void *stream, void (*act)(void *), const void *argument, size_t size) {
    pthread_mutex_lock(&lock);
    Stream *on = stream ? stream : &default_stream;
    Operation *operation = calloc(1, sizeof *operation);
    operation->act = act;
    operation->argument = memcpy(malloc(size), argument, size);
    operation->first = on->last;
    on->last = (Operations){0};
    add(&on->last, (Operations){&operation, 1});
    pthread_mutex_unlock(&lock);
}

// The driver.

int cuInit(unsigned flags) { return SUCCESS; }
int cuDriverGetVersion(int *version) { return *version = pretends("old driver") ? 12040 : 13000, SUCCESS; }
int cuDeviceGetCount(int *count) { return *count = 1, SUCCESS; }
int cuDeviceGet(int *device, int ordinal) { return *device = ordinal, SUCCESS; }
int cuDeviceTotalMem_v2(size_t *bytes, int device) { return *bytes = 8ull << 30, SUCCESS; }
int cuDevicePrimaryCtxRetain(void **of, int device) { return *of = &context, SUCCESS; }
int cuCtxSetCurrent(void *to) { return current = to, SUCCESS; }
int cuCtxGetCurrent(void **of) { return *of = current, SUCCESS; }
int cuGetErrorString(int error, const char **text) { return *text = "a pretended error", SUCCESS; }
// Kernels are loaded and launched, and do nothing: that they have been compiled is what there is to see.
int cuModuleLoadData(void **module, const void *image) { return *module = (void *)image, SUCCESS; }
int cuModuleGetFunction(void **function, void *module, const char *name) { return *function = module, SUCCESS; }
int cuFuncSetAttribute(void *function, int attribute, int value) { return SUCCESS; }
int cuLaunchKernel(void *function, unsigned x, unsigned y, unsigned z, unsigned units_x, unsigned units_y, unsigned units_z,
                   unsigned shared, void *stream, void **arguments, void **extra) {
    return SUCCESS;
}
int cuDeviceGetAttribute(int *value, int attribute, int device) {
    switch (attribute) {
    case 1: case 2: case 3: case 4: *value = 1024; break; // Threads of a block, and its sizes.
    case 5: case 6: case 7: *value = 65535; break;        // Sizes of a grid.
    case 10: *value = 32; break;                          // Threads of a warp.
    case 75: *value = 9; break;                           // Compute capability 9.0.
    case 76: *value = 0; break;
    case 97: *value = 232448; break;                      // Shared memory.
    default: *value = 1;
    }
    return SUCCESS;
}

int cuStreamCreate(Stream **stream, unsigned flags) {
    if (!current) return INVALID_CONTEXT;
    pthread_mutex_lock(&lock);
    DEMAND(stream_count < 256);
    *stream = streams[stream_count++] = calloc(1, sizeof(Stream));
    pthread_mutex_unlock(&lock);
    return SUCCESS;
}
int cuEventCreate(Event **event, unsigned flags) {
    if (!current) return INVALID_CONTEXT;
    *event = calloc(1, sizeof(Event));
    return SUCCESS;
}
int cuEventDestroy_v2(Event *event) { return free(event), SUCCESS; }
int cuEventRecord(Event *event, Stream *stream) {
    pthread_mutex_lock(&lock);
    event->held = (Operations){0};
    add(&event->held, (stream ? stream : &default_stream)->last);
    pthread_mutex_unlock(&lock);
    return SUCCESS;
}
int cuStreamWaitEvent(Stream *stream, Event *event, unsigned flags) {
    pthread_mutex_lock(&lock);
    add(&(stream ? stream : &default_stream)->last, event->held);
    pthread_mutex_unlock(&lock);
    return SUCCESS;
}
int cuCtxRecordEvent(void *of, Event *event) {
    if (of != &context) return INVALID_HANDLE;
    DEMAND(current == &context);
    pthread_mutex_lock(&lock);
    event->held = (Operations){0};
    for (int i = 0; i < stream_count; i++) add(&event->held, streams[i]->last);
    pthread_mutex_unlock(&lock);
    return SUCCESS;
}
int cuCtxWaitEvent(void *of, Event *event) {
    if (of != &context) return INVALID_HANDLE;
    if (pretends("waits fail")) return UNKNOWN;
    if (pretends("no waits")) return SUCCESS;
    pthread_mutex_lock(&lock);
    for (int i = 0; i < stream_count; i++) add(&streams[i]->last, event->held);
    pthread_mutex_unlock(&lock);
    return SUCCESS;
}
int cuEventSynchronize(Event *event) {
    pthread_mutex_lock(&lock);
    finish(event->held);
    pthread_mutex_unlock(&lock);
    return SUCCESS;
}
int cuStreamSynchronize(Stream *stream) {
    pthread_mutex_lock(&lock);
    finish((stream ? stream : &default_stream)->last);
    pthread_mutex_unlock(&lock);
    return SUCCESS;
}
int cuCtxSynchronize(void) {
    for (int i = 0; i < stream_count; i++) cuStreamSynchronize(streams[i]);
    return SUCCESS;
}

int cuMemAllocAsync(void **memory, size_t bytes, void *stream) {
    bytes = (bytes + 511) / 512 * 512;
    // Every number that is not written is NaN.
    *memory = memset(aligned_alloc(512, bytes), 0xFF, bytes);
    return SUCCESS;
}
int cuMemFreeAsync(void *memory, void *stream) { return SUCCESS; }
int cuMemAllocHost_v2(void **memory, size_t bytes) { return cuMemAllocAsync(memory, bytes, NULL); }
int cuMemFreeHost(void *memory) { return free(memory), SUCCESS; }

typedef struct {
    void *to;
    const void *from;
    size_t bytes;
} Copy;
static void copy(void *argument) {
    Copy *it = argument;
    memcpy(it->to, it->from, it->bytes);
}
int cuMemcpyHtoDAsync_v2(void *to, const void *from, size_t bytes, void *stream) {
    Copy it = {to, from, bytes};
    return enqueue(stream, copy, &it, sizeof it), SUCCESS;
}
int cuMemcpyDtoHAsync_v2(void *to, const void *from, size_t bytes, void *stream) {
    return cuMemcpyHtoDAsync_v2(to, from, bytes, stream);
}

// As in NVIDIA's header.
typedef struct {
    size_t from_x, from_y;
    unsigned from_kind;
    const char *from_host, *from_device;
    void *from_array;
    size_t from_pitch, to_x, to_y;
    unsigned to_kind;
    char *to_host, *to_device;
    void *to_array;
    size_t to_pitch, width, height;
} Copy2;
static void copy_rows(void *argument) {
    Copy2 *it = argument;
    const char *from = it->from_kind == 1 ? it->from_host : it->from_device;
    char *to = it->to_kind == 1 ? it->to_host : it->to_device;
    for (size_t row = 0; row < it->height; row++) memcpy(to + row * it->to_pitch, from + row * it->from_pitch, it->width);
}
int cuMemcpy2DAsync_v2(const Copy2 *it, void *stream) { return enqueue(stream, copy_rows, it, sizeof *it), SUCCESS; }
int cuMemsetD2D8_v2(char *memory, size_t pitch, unsigned char value, size_t width, size_t height) {
    for (size_t row = 0; row < height; row++) memset(memory + row * pitch, value, width);
    return SUCCESS;
}

// The library.

enum { F32 = 0, F16 = 2, BF16 = 14, COMPUTE_32F = 68, WORKSPACE = 1 << 20 };
typedef struct {
    int transposes[2];
} Description;
typedef struct {
    int type;
    uint64_t rows, columns;
    int64_t leading, distance;
    int32_t batches;
} Layout;
typedef struct {
    uint64_t workspace;
    uint32_t reductions, alignment[4];
} Preference;
typedef struct {
    uint64_t product, alignment[4], rest[3];
} Algorithm;
typedef struct {
    Algorithm algorithm;
    size_t workspace;
    int state;
    float waves;
    int reserved[4];
} Heuristic;
typedef struct {
    Description description;
    Layout a, b, d;
    const char *of_a, *of_b;
    char *of_d, *workspace;
    float alpha, beta;
} Product;

static uint64_t check(const Description *is, const Layout *a, const Layout *b, const Layout *d) {
    uint64_t m = is->transposes[0] ? a->columns : a->rows, k = is->transposes[0] ? a->rows : a->columns;
    uint64_t n = is->transposes[1] ? b->rows : b->columns;
    DEMAND(k == (is->transposes[1] ? b->columns : b->rows));
    DEMAND(d->rows == m && d->columns == n);
    DEMAND(a->batches == b->batches && b->batches == d->batches);
    DEMAND(a->type == b->type && (d->type == a->type || d->type == F32));
    return m * 1000003 + n * 1009 + k;
}

size_t cublasLtGetVersion(void) { return 130100; }
int cublasLtCreate(void **handle) { return *handle = malloc(1), current ? SUCCESS : 1; }
int cublasLtMatmulDescCreate(Description **it, int sums, int scale) {
    DEMAND(sums == COMPUTE_32F && scale == F32);
    return *it = calloc(1, sizeof **it), SUCCESS;
}
int cublasLtMatmulDescSetAttribute(Description *it, int attribute, const void *value, size_t size) {
    DEMAND(size == 4 && (attribute == 3 || attribute == 4));
    return memcpy(&it->transposes[attribute - 3], value, size), SUCCESS;
}
int cublasLtMatmulDescDestroy(Description *it) { return free(it), SUCCESS; }
int cublasLtMatrixLayoutCreate(Layout **it, int type, uint64_t rows, uint64_t columns, int64_t leading) {
    DEMAND(rows > 0 && columns > 0 && leading >= (int64_t)rows);
    *it = malloc(sizeof **it);
    **it = (Layout){type, rows, columns, leading, 0, 1};
    return SUCCESS;
}
int cublasLtMatrixLayoutSetAttribute(Layout *it, int attribute, const void *value, size_t size) {
    DEMAND((attribute == 5 && size == 4) || (attribute == 6 && size == 8));
    return memcpy(attribute == 5 ? (void *)&it->batches : &it->distance, value, size), SUCCESS;
}
int cublasLtMatrixLayoutDestroy(Layout *it) { return free(it), SUCCESS; }
int cublasLtMatmulPreferenceCreate(Preference **it) { return *it = calloc(1, sizeof **it), SUCCESS; }
int cublasLtMatmulPreferenceSetAttribute(Preference *it, int attribute, const void *value, size_t size) {
    DEMAND((attribute == 1 && size == 8) || (size == 4 && (attribute == 3 || (attribute >= 5 && attribute <= 8))));
    void *place = attribute == 1 ? (void *)&it->workspace : attribute == 3 ? &it->reductions : &it->alignment[attribute - 5];
    return memcpy(place, value, size), SUCCESS;
}
int cublasLtMatmulPreferenceDestroy(Preference *it) { return free(it), SUCCESS; }
int cublasLtMatmulAlgoGetHeuristic(void *handle, Description *is, Layout *a, Layout *b, Layout *c, Layout *d, Preference *may, int want,
                                   Heuristic *found, int *count) {
    DEMAND(c == d && want == 1 && may->workspace >= WORKSPACE && may->reductions == 2);
    if (pretends("refuses")) return *count = 0, NOT_SUPPORTED;
    memset(found, 0, sizeof *found);
    found->algorithm.product = check(is, a, b, d);
    for (int i = 0; i < 4; i++) found->algorithm.alignment[i] = may->alignment[i];
    found->workspace = WORKSPACE;
    return *count = 1, SUCCESS;
}

static float number(int type, const char *memory, uint64_t place) {
    if (type == F32) return ((const float *)memory)[place];
    if (type == F16) return ((const _Float16 *)memory)[place];
    uint32_t bits = (uint32_t)((const uint16_t *)memory)[place] << 16;
    float value;
    return memcpy(&value, &bits, 4), value;
}
static void set_number(int type, char *memory, uint64_t place, float value) {
    if (type == F32) ((float *)memory)[place] = value;
    if (type == F16) ((_Float16 *)memory)[place] = value;
    if (type != BF16) return;
    uint32_t bits;
    memcpy(&bits, &value, 4);
    ((uint16_t *)memory)[place] = value != value ? 0x7FC0 : (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16;
}
static void multiply(void *argument) {
    Product *it = argument;
    const Layout *a = &it->a, *b = &it->b, *d = &it->d;
    const int *transposes = it->description.transposes;
    uint64_t inner = transposes[0] ? a->rows : a->columns;
    memset(it->workspace, 0xFF, WORKSPACE);
    for (int64_t batch = 0; batch < d->batches; batch++)
        for (uint64_t column = 0; column < d->columns; column++)
            for (uint64_t row = 0; row < d->rows; row++) {
                double sum = 0;
                for (uint64_t i = 0; i < inner; i++) {
                    uint64_t in_a = transposes[0] ? i + row * a->leading : row + i * a->leading;
                    uint64_t in_b = transposes[1] ? column + i * b->leading : i + column * b->leading;
                    sum += (double)number(a->type, it->of_a, in_a + batch * a->distance) *
                           number(b->type, it->of_b, in_b + batch * b->distance);
                }
                uint64_t place = row + column * d->leading + batch * d->distance;
                sum *= it->alpha;
                if (it->beta != 0) sum += it->beta * number(d->type, it->of_d, place);
                set_number(d->type, it->of_d, place, sum);
            }
}
int cublasLtMatmul(void *handle, Description *is, const float *alpha, const char *of_a, Layout *a, const char *of_b, Layout *b,
                   const float *beta, const char *of_c, Layout *c, char *of_d, Layout *d, const Algorithm *algorithm, char *workspace,
                   size_t bytes, void *stream) {
    static int calls;
    if (pretends("fails late") && ++calls > 2) return EXECUTION_FAILED;
    DEMAND(of_c == of_d && c == d && stream && bytes == WORKSPACE && (uintptr_t)workspace % 256 == 0);
    DEMAND(algorithm->product == check(is, a, b, d));
    DEMAND((uintptr_t)of_a % algorithm->alignment[0] == 0 && (uintptr_t)of_b % algorithm->alignment[1] == 0);
    DEMAND((uintptr_t)of_d % algorithm->alignment[2] == 0 && algorithm->alignment[2] == algorithm->alignment[3]);
    Product it = {*is, *a, *b, *d, of_a, of_b, of_d, workspace, *alpha, *beta};
    return enqueue(stream, multiply, &it, sizeof it), SUCCESS;
}
const char *cublasLtGetStatusString(int status) { return "a pretended status"; }
