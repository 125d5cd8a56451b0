// CUDA on a CPU, as far as the kernels of emdl use it: the same source compiles as C++20 and runs block after block.
//
// A CUDA thread is a thread of the system, so that ThreadSanitizer sees a missing barrier, or with FIBERS a coroutine,
// which is fast where nothing is to be found out about races. Dynamic shared memory is one allocation of exactly the size
// asked for, so that AddressSanitizer sees a step outside; all shared memory starts as NaN.

#pragma once
#include <atomic>
#include <barrier>
#include <cstdint>
#include <cstring>
#include <memory>
#include <stdexcept>
#include <thread>
#include <utility>
#include <vector>
#ifdef FIBERS
#include <csetjmp>
#include <deque>
#include <ucontext.h>
#endif

#define __global__
#define __device__
#define __shared__ static
#define __launch_bounds__(threads)

struct uint3 {
    unsigned x = 0, y = 0, z = 0;
};

namespace shim {
inline unsigned char *shared = nullptr;
inline uint3 block, grid_size, block_size;
inline std::atomic<int> votes[2];

#ifdef FIBERS
inline uint3 thread_index;
struct Fiber {
    std::unique_ptr<char[]> stack{new char[65536]};
    std::jmp_buf resume;
    unsigned vote_round = 0;
    bool started = false, done = false;
};
inline std::deque<Fiber> fibers;  // kept from launch to launch
inline std::jmp_buf scheduler;
inline unsigned running;
inline void (*entry)(void *);
inline void *argument;
inline void wait() {
    if (!_setjmp(fibers[running].resume)) _longjmp(scheduler, 1);
    thread_index.x = running;
}
inline void live() {
    for (;;) {
        entry(argument);
        fibers[running].done = true;
        wait();
    }
}
inline void resume() {
    if (_setjmp(scheduler)) return;
    if (fibers[running].started) _longjmp(fibers[running].resume, 1);
    fibers[running].started = true;
    ucontext_t first;
    getcontext(&first);
    first.uc_stack.ss_sp = fibers[running].stack.get();
    first.uc_stack.ss_size = 65536;
    makecontext(&first, live, 0);
    setcontext(&first);
}
inline unsigned &vote_round() { return fibers[running].vote_round; }
#else
inline thread_local uint3 thread_index;
inline thread_local unsigned round_of_vote = 0;
inline std::barrier<> *gate = nullptr;
inline void wait() { gate->arrive_and_wait(); }
inline unsigned &vote_round() { return round_of_vote; }
#endif
}  // namespace shim

#define threadIdx shim::thread_index
#define blockIdx shim::block
#define gridDim shim::grid_size
#define blockDim shim::block_size
#define memory shim::shared

inline void __syncthreads() { shim::wait(); }

inline int __syncthreads_or(int value) {  // two counters take turns, so that one can be cleared while the other is in use
    auto &mine = shim::votes[shim::vote_round()++ % 2];
    if (value) mine.store(1);
    shim::wait();
    const int result = mine.load();
    shim::wait();
    mine.store(0);
    return result;
}

namespace shim {
template <class Kernel>
void run(const unsigned *dims, std::size_t bytes, Kernel kernel) {  // dims: grid x, y, z, threads of a block
    const unsigned threads = dims[3];
    grid_size = {dims[0], dims[1], dims[2]};
    block_size = {threads, 1, 1};
    std::vector<uint3> blocks;
    for (unsigned z = 0; z < dims[2]; ++z)
        for (unsigned y = 0; y < dims[1]; ++y)
            for (unsigned x = 0; x < dims[0]; ++x) blocks.push_back({x, y, z});
    std::unique_ptr<unsigned char[]> held;
    auto begin = [&](uint3 at) {
        block = at;
        held.reset(new unsigned char[bytes ? bytes : 1]);  // memory before and after it is out of bounds
        std::memset(held.get(), 0xff, bytes ? bytes : 1);
        shared = held.get();
    };
#ifdef FIBERS
    entry = [](void *k) { (*static_cast<Kernel *>(k))(); };
    argument = &kernel;
    while (fibers.size() < threads) fibers.emplace_back();
    for (auto at : blocks) {
        begin(at);
        for (auto &f : fibers) f.done = false;
        for (bool left = true; left;) {
            left = false;
            for (running = 0; running < threads; ++running) {
                if (fibers[running].done) continue;
                thread_index.x = running;
                resume();
                left = left || !fibers[running].done;
            }
        }
    }
#else
    std::barrier<> barrier(threads);
    gate = &barrier;
    std::vector<std::thread> pool;
    for (unsigned t = 0; t < threads; ++t)
        pool.emplace_back([&, t] {
            thread_index = {t, 0, 0};
            for (auto at : blocks) {
                if (t == 0) begin(at);
                barrier.arrive_and_wait();
                kernel();
                barrier.arrive_and_wait();
            }
        });
    for (auto &thread : pool) thread.join();
#endif
}

template <class... Arguments, std::size_t... index>
void call(void (*kernel)(Arguments...), const unsigned *dims, std::size_t bytes, void **values, std::index_sequence<index...>) {
    run(dims, bytes, [&] { kernel(*static_cast<Arguments *>(values[index])...); });
}

// Run a kernel whose arguments lie at `values`, as cuLaunchKernel takes them.
template <class... Arguments>
void launch(void (*kernel)(Arguments...), const unsigned *dims, std::size_t bytes, void **values) {
    call(kernel, dims, bytes, values, std::index_sequence_for<Arguments...>());
}
}  // namespace shim
