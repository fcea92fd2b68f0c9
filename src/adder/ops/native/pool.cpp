#include "pool.hpp"

#include <pthread.h>

#include <atomic>
#include <condition_variable>
#include <cstdlib>
#include <deque>
#include <memory>
#include <mutex>
#include <new>
#include <system_error>
#include <thread>

namespace adder {
namespace {

struct Job {
  void (*run)(void*, int64_t);
  void* context;
  int64_t tasks;
  int helpers;  // pool threads that may still join
  std::atomic<int64_t> next{0};
  std::atomic<bool> failed{false};
  int inside = 0;  // pool threads at work on it

  void work() {
    for (int64_t task; (task = next.fetch_add(1)) < tasks;) {
      try {
        run(context, task);
      } catch (...) {  // only scratch() throws: the caller turns it into a MemoryError
        failed = true;
      }
    }
  }
};

class Pool {
 public:
  void parallel(Job& job, int threads) {
    const int helpers = job.helpers;  // pool threads count it down from the moment the lock is released
    {
      std::lock_guard<std::mutex> lock(mutex_);
      start(threads - 1);
      jobs_.push_back(&job);
    }
    for (int i = 0; i < helpers; ++i) wake_.notify_one();
    job.work();
    std::unique_lock<std::mutex> lock(mutex_);
    for (auto it = jobs_.begin(); it != jobs_.end(); ++it)
      if (*it == &job) {
        jobs_.erase(it);
        break;
      }
    done_.wait(lock, [&] { return job.inside == 0; });
  }

 private:
  // Where the system refuses a thread, the work is done by those that there are.
  void start(int threads) {
    try {
      for (; started_ < threads; ++started_) std::thread([this] { serve(); }).detach();
    } catch (const std::system_error&) {
    }
  }

  void serve() {
    std::unique_lock<std::mutex> lock(mutex_);
    for (;;) {
      wake_.wait(lock, [&] { return !jobs_.empty(); });
      Job* job = jobs_.front();
      if (--job->helpers <= 0) jobs_.pop_front();
      ++job->inside;
      lock.unlock();
      job->work();
      lock.lock();
      if (--job->inside == 0) done_.notify_all();
    }
  }

  std::mutex mutex_;
  std::condition_variable wake_, done_;
  std::deque<Job*> jobs_;
  int started_ = 0;
};

// Never destroyed: its threads sleep in it until the process ends. A fork leaves the threads behind, so the child
// makes a pool of its own.
Pool* pool = nullptr;
std::once_flag once;

Pool& the_pool() {
  std::call_once(once, [] {
    pool = new Pool;
    pthread_atfork(nullptr, nullptr, [] { pool = new Pool; });
  });
  return *pool;
}

struct Memory {
  void* data = nullptr;
  int64_t size = 0;
  ~Memory() { std::free(data); }
};

}  // namespace

void parallel(int64_t tasks, int threads, void (*run)(void*, int64_t), void* context) {
  Job job;
  job.run = run;
  job.context = context;
  job.tasks = tasks;
  if (threads > tasks) threads = static_cast<int>(tasks);
  job.helpers = threads - 1;
  if (threads <= 1) {
    job.work();
  } else {
    the_pool().parallel(job, threads);
  }
  if (job.failed) throw std::bad_alloc();
}

namespace {

struct alignas(64) Phase {
  std::atomic<int64_t> claimed{0}, done{0};
};

inline void pause() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

}  // namespace

void parallel_phases(const int64_t* tasks, int64_t phases, int threads, void (*run)(void*, int64_t, int64_t), void* context) {
  std::unique_ptr<Phase[]> states(new Phase[phases]);
  std::atomic<bool> failed{false};
  auto participant = [&](int64_t) {
    for (int64_t p = 0; p < phases; ++p) {
      Phase& state = states[p];
      for (int64_t task; (task = state.claimed.fetch_add(1, std::memory_order_relaxed)) < tasks[p];) {
        try {
          run(context, p, task);
        } catch (...) {
          failed = true;
        }
        state.done.fetch_add(1, std::memory_order_acq_rel);
      }
      for (int spins = 0; state.done.load(std::memory_order_acquire) < tasks[p]; ++spins) {
        if (spins < 4096)
          pause();
        else
          std::this_thread::yield();  // whoever holds the last task may be waiting for this core
      }
    }
  };
  parallel_for(threads, threads, participant);
  if (failed) throw std::bad_alloc();
}

void* scratch(int64_t bytes) {
  thread_local Memory memory;
  if (memory.size < bytes) {
    std::free(memory.data);
    memory.data = nullptr;
    memory.size = 0;
    if (posix_memalign(&memory.data, 64, static_cast<size_t>(bytes)) != 0) throw std::bad_alloc();
    memory.size = bytes;
  }
  return memory.data;
}

}  // namespace adder
