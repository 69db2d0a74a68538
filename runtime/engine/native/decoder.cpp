// The kernels' interface to Python, which runs a whole step in one call. layout.h has the structures that it passes.

#include <new>
#include <system_error>

#include "check.h"
#include "decoder.h"
#include "gemm.h"
#include "layout.h"

using warmstart::Config;
using warmstart::Decoder;
using warmstart::Step;

namespace {

// No exception leaves the library: Python would end with it.
template <class Body>
int32_t status_of(const Body& body) {
    try {
        return body();
    } catch (const std::system_error&) {
        return warmstart::kNoThreads;
    } catch (...) {
        return warmstart::kNoMemory;
    }
}

}  // namespace

extern "C" {

// The layout of the shared structures, and how many numbers that is: see kLayout.
const int32_t* warmstart_layout(int32_t* count) {
    *count = sizeof(warmstart::kLayout) / sizeof(int32_t);
    return warmstart::kLayout;
}

// Whether this process may use the registers that the library needs; asks the system for them. Called before others.
int32_t warmstart_permitted() { return warmstart::permit_tiles(); }

// What a status means. 0 is success, 1 a lack of memory.
const char* warmstart_describe(int32_t status) { return warmstart::describe(status); }

// Returns a status; `decoder` is set if it is 0.
int32_t warmstart_open(const Config* config, void** decoder) {
    return status_of([&] {
        const warmstart::Status status = check(*config);
        if (status == warmstart::kOk) *decoder = new Decoder(*config);
        return status;
    });
}

// Returns a status.
int32_t warmstart_step(void* decoder, const Step* step) {
    if (!decoder) return warmstart::kClosed;
    return status_of([&] { return ((Decoder*)decoder)->step(*step); });
}

// Returns a status.
int32_t warmstart_copy_block(void* decoder, int32_t source, int32_t target) {
    if (!decoder) return warmstart::kClosed;
    return status_of([&] { return ((Decoder*)decoder)->copy_block(source, target); });
}

// Returns a status.
int32_t warmstart_read(void* decoder, const void* data, uint64_t bytes, float* sum) {
    if (!decoder) return warmstart::kClosed;
    return status_of([&] {
        *sum = ((Decoder*)decoder)->read(data, bytes);
        return warmstart::kOk;
    });
}

void warmstart_close(void* decoder) { delete (Decoder*)decoder; }
}
