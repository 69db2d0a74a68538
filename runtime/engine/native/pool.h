// A team of threads for loops of a few microseconds: a step has hundreds of them.
#pragma once

#include <sched.h>

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <memory>
#include <mutex>
#include <new>
#include <thread>
#include <vector>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace warmstart {

// Tasks are taken from a counter, not dealt out: where a core is busy with something else (the event loop, a client),
// the other threads take its share. A thread that wakes late finds the loop's epoch gone and takes nothing, so the
// caller waits only for tasks under way, never for a thread.
class Pool {
  public:
    // Throws std::system_error if the system gives no more threads.
    explicit Pool(int threads) {
        try {
            for (int i = 1; i < threads; i++) workers_.emplace_back([this, i] { work(i); });
        } catch (...) {
            stop();
            throw;
        }
    }

    ~Pool() { stop(); }

    int threads() const { return (int)workers_.size() + 1; }

    // Workers spin while one of these lives, and sleep otherwise.
    class Awake {
      public:
        explicit Awake(Pool& pool) : pool_(pool) {
            if (pool_.workers_.empty()) return;
            {
                std::lock_guard<std::mutex> held(pool_.mutex_);
                pool_.awake_ = true;
            }
            pool_.wake_.notify_all();
        }
        ~Awake() { pool_.awake_ = false; }

      private:
        Pool& pool_;
    };

    // Calls body(first, last, thread) for slices of [0, total), `grain` indices each, from several threads. Throws
    // std::bad_alloc if a call threw: that is all that a body throws.
    template <class Body>
    void run(int total, int grain, const Body& body) {
        if (total <= grain || workers_.empty()) {
            if (total > 0) body(0, total, 0);
            return;
        }
        const uint32_t epoch = ++epoch_;
        Loop& loop = loops_[epoch % kLoops];
        loop.call.store([](const void* b, int first, int last, int thread) {
            (*(const Body*)b)(first, last, thread);
        }, std::memory_order_relaxed);
        loop.body.store(&body, std::memory_order_relaxed);
        loop.total.store(total, std::memory_order_relaxed);
        loop.grain.store(grain, std::memory_order_relaxed);
        finished_.store(0, std::memory_order_relaxed);
        ticket_.store((uint64_t)epoch << 32, std::memory_order_release);
        while (take(0)) {
        }
        for (int spins = 0; finished_.load(std::memory_order_acquire) < total; spins++) relax(spins);
        if (failed_.exchange(false, std::memory_order_relaxed)) throw std::bad_alloc();
    }

    // Calls body(token, thread) for each token, on the calling thread alone for very few.
    template <class Body>
    void each(int tokens, const Body& body) {
        run(tokens, tokens <= kAlone ? tokens : std::max(1, tokens / (threads() * 4)),
            [&](int first, int last, int thread) {
                for (int t = first; t < last; t++) body(t, thread);
            });
    }

  private:
    static constexpr int kAlone = 2;  // tokens up to which row-wise work stays on the calling thread

    void stop() {
        {
            std::lock_guard<std::mutex> held(mutex_);
            ending_ = true;
            awake_ = true;
        }
        wake_.notify_all();
        for (auto& worker : workers_) worker.join();
    }

    static constexpr int kLoops = 64;  // descriptors, so that a late thread reads an old one whole, and is refused
    using Call = void (*)(const void*, int, int, int);

    struct Loop {
        std::atomic<Call> call{nullptr};
        std::atomic<const void*> body{nullptr};
        std::atomic<int> total{0};
        std::atomic<int> grain{1};
    };

    static void relax(int spins) {
        if (spins % 64 == 63) {
            sched_yield();  // another thread may want this core
            return;
        }
#if defined(__x86_64__)
        _mm_pause();
#elif defined(__aarch64__)
        asm volatile("yield");
#endif
    }

    // Take and run one slice; whether there was one.
    bool take(int thread) {
        uint64_t ticket = ticket_.load(std::memory_order_acquire);
        for (;;) {
            const Loop& loop = loops_[(ticket >> 32) % kLoops];
            const Call call = loop.call.load(std::memory_order_relaxed);
            const void* body = loop.body.load(std::memory_order_relaxed);
            const int total = loop.total.load(std::memory_order_relaxed);
            const int grain = loop.grain.load(std::memory_order_relaxed);
            const int first = (int)(uint32_t)ticket;
            if (first >= total) return false;
            const int last = first + grain < total ? first + grain : total;
            const uint64_t next = (ticket & ~(uint64_t)0xffffffff) | (uint32_t)last;
            // Only the epoch under way can be taken from, so what was read above is its own.
            if (ticket_.compare_exchange_weak(ticket, next, std::memory_order_acq_rel, std::memory_order_acquire)) {
                try {
                    call(body, first, last, thread);
                } catch (...) {
                    failed_.store(true, std::memory_order_relaxed);  // read by the caller once the loop has finished
                }
                finished_.fetch_add(last - first, std::memory_order_acq_rel);
                return true;
            }
        }
    }

    void work(int thread) {
        for (int spins = 0;; spins++) {
            if (take(thread)) {
                spins = 0;
            } else if (awake_.load(std::memory_order_relaxed)) {
                relax(spins);
            } else {
                std::unique_lock<std::mutex> held(mutex_);
                wake_.wait(held, [this] { return awake_.load(); });
                spins = 0;
            }
            if (ending_.load(std::memory_order_relaxed)) return;
        }
    }

    std::vector<std::thread> workers_;
    std::mutex mutex_;
    std::condition_variable wake_;
    std::atomic<bool> awake_{false};
    std::atomic<bool> ending_{false};
    std::atomic<bool> failed_{false};  // whether a call of the loop under way threw
    Loop loops_[kLoops];
    uint32_t epoch_ = 0;
    alignas(64) std::atomic<uint64_t> ticket_{0};
    alignas(64) std::atomic<int> finished_{0};
};

}  // namespace warmstart
