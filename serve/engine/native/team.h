// What the threads of one parallel region share: a barrier, a range to split, memory to work in.
//
// Promise: `Barrier::wait` orders everything before it in any thread before everything after it in any other. Price: about 0.2 us for two
// threads that arrive together (an OpenMP barrier costs as much or more), and no sleeping: after a while of spinning the core is
// offered to others, for a process may share its cores. How many threads come is the caller's to say: OpenMP may give fewer than were
// asked for (OMP_THREAD_LIMIT, OMP_DYNAMIC), and a barrier for more than there are would wait for ever.
#pragma once

#include <immintrin.h>
#include <sched.h>

#include <atomic>
#include <cstdlib>

namespace sterna {

class Barrier {
public:
    void wait(int threads) {
        if (threads == 1) return;
        const int turn = turn_.load(std::memory_order_acquire);
        if (arrived_.fetch_add(1, std::memory_order_acq_rel) + 1 == threads) {
            arrived_.store(0, std::memory_order_relaxed);
            turn_.store(turn + 1, std::memory_order_release);
            return;
        }
        for (int spins = 0; turn_.load(std::memory_order_acquire) == turn; spins++) {
            if (spins < 500) _mm_pause();
            else sched_yield();
        }
    }

private:
    alignas(64) std::atomic<int> arrived_{0};
    alignas(64) std::atomic<int> turn_{0};
};

struct Range {
    long begin, end;
};

inline Range share(long total, long thread, long threads) { return {total * thread / threads, total * (thread + 1) / threads}; }

class Memory {  // aligned, grown when needed, contents not kept
public:
    Memory() = default;
    Memory(const Memory&) = delete;
    Memory& operator=(const Memory&) = delete;
    ~Memory() { std::free(data_); }

    char* at_least(size_t bytes) {
        if (bytes > size_) {
            std::free(data_);
            size_ = (bytes + bytes / 4 + 4095) / 4096 * 4096;
            data_ = (char*)std::aligned_alloc(4096, size_);
            if (!data_) std::abort();
        }
        return data_;
    }

private:
    char* data_ = nullptr;
    size_t size_ = 0;
};

}  // namespace sterna
