// One matrix product as a call of its own: for layers that run piecewise, tests and measurements.
#include "gemm.h"
#include "pack.h"

#include <omp.h>

using namespace sterna;

namespace {

// How much work is worth waking another thread for.
int team(const Matrix& w, long m, int threads) {
    return w.n * w.k * m < (1L << 15) ? 1 : threads;
}

template <class In, class Out>
void run(const Matrix& w, const In* x, long ldx, long m, Out* y, long ldy, bool add, void* memory, int threads) {
    const Rows rows = rows_at(memory, m, w.k);
#pragma omp parallel num_threads(team(w, m, threads))
    {
        prepare(rows, x, ldx, w.kind, omp_get_thread_num(), omp_get_num_threads());
#pragma omp barrier
        multiply(w, rows, y, ldy, add, omp_get_thread_num(), omp_get_num_threads());
    }
}

}  // namespace

extern "C" {

// Bytes of a panel of 32 outputs, with the scales of groups.
size_t sterna_panel_bytes(int kind, long k, long group) { return panel_bytes(kind, k, group); }

// Bytes of working memory (64-byte aligned) that sterna_linear needs.
size_t sterna_rows_bytes(long m, long k) { return rows_bytes(m, k); }

void sterna_pack(
    int kind, long k, long group, long parts, const void* const* stored, const long* counts, const long* strides, void* data, int threads
) {
    const char* const* rows = reinterpret_cast<const char* const*>(stored);
#pragma omp parallel num_threads(threads)
    pack(kind, k, group, parts, rows, counts, strides, static_cast<char*>(data), omp_get_thread_num(), omp_get_num_threads());
}

// y (+)= x Wᵀ + bias; x is bf16 (x_float 0) or float32, and so is y.
void sterna_linear(
    const Matrix* w, const void* x, int x_float, long ldx, long m, void* y, int y_float, long ldy, int add, void* memory, int threads
) {
    const float* x32 = static_cast<const float*>(x);
    const uint16_t* x16 = static_cast<const uint16_t*>(x);
    if (y_float) {
        float* out = static_cast<float*>(y);
        if (x_float) return run(*w, x32, ldx, m, out, ldy, add, memory, threads);
        return run(*w, x16, ldx, m, out, ldy, add, memory, threads);
    }
    uint16_t* out = static_cast<uint16_t*>(y);
    if (x_float) return run(*w, x32, ldx, m, out, ldy, false, memory, threads);
    return run(*w, x16, ldx, m, out, ldy, false, memory, threads);
}
}
