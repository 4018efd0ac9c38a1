// Threads that share the work of one call. None waits for one that the system has put to sleep, unless for the piece it holds.
#pragma once
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <functional>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

struct alignas(64) Stretch {  // of the work: pieces that may be done in any order, by anyone
  std::atomic<long> taken{0};
  alignas(64) std::atomic<long> done{0};
};

inline void relax() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

// A turn of waiting: some 50 microseconds altogether, and from there on another process may have the core.
inline void wait_a_turn(int turns) {
  if (turns < 4000) relax();
  else sched_yield();
}

// One thread's way through the stretches. Every thread takes the same way; of each stretch it does the pieces that no other has
// taken, and goes on when all are done. Who comes late finds nothing left to do, and touches nothing but these counters.
class Member {
 public:
  explicit Member(std::vector<Stretch>& way) : way(way) {}

  template <class F>
  void share(long pieces, F f) {
    Stretch& here = way[at++];
    for (long i; (i = here.taken.fetch_add(1, std::memory_order_relaxed)) < pieces; here.done.fetch_add(1, std::memory_order_release))
      f(i);
    for (int turns = 0; here.done.load(std::memory_order_acquire) < pieces; turns++) wait_a_turn(turns);
  }

 private:
  std::vector<Stretch>& way;
  size_t at = 0;
};

struct Task {
  std::vector<Stretch> way;
  std::function<void(Member&)> body;  // owns what a late thread may still look at when the caller has gone on
  std::atomic<int> places;
  Task(int stretches, int helpers, std::function<void(Member&)> body) : way(stretches), body(std::move(body)), places(helpers) {}
  void work() {
    Member member(way);
    body(member);
  }
};

// Turns that a thread waits for the next task before it sleeps, about a millisecond. The next step of a decode comes within a
// third of that, and waking up takes a tenth of a small model's step.
constexpr int PATIENCE = 6000;

class Pool {
 public:
  static Pool*& one() {  // never taken down: its threads may be waiting when the process ends
    static Pool* pool = [] {
      pthread_atfork(nullptr, nullptr, [] { one() = new Pool; });  // a child has none of its parent's threads
      return new Pool;
    }();
    return pool;
  }

  void offer(const std::shared_ptr<Task>& task, int helpers) {
    {
      std::lock_guard<std::mutex> lock(mutex);
      for (; num_threads < helpers; num_threads++) start();
      offered = task, number++;
    }
    changed.notify_all();
  }

  void withdraw(const std::shared_ptr<Task>& task) {
    std::lock_guard<std::mutex> lock(mutex);
    if (offered == task) offered.reset();  // another engine's may have taken its place
  }

 private:
  void start() {
    sigset_t all, before;
    sigfillset(&all);  // signals are for the threads that Python knows
    pthread_sigmask(SIG_SETMASK, &all, &before);
    std::thread([this] { serve(); }).detach();
    pthread_sigmask(SIG_SETMASK, &before, nullptr);
  }

  void serve() {
    for (long seen = 0;;) {
      for (int turns = 0; turns < PATIENCE && number.load(std::memory_order_relaxed) == seen; turns++) wait_a_turn(turns);
      std::shared_ptr<Task> task;
      {
        std::unique_lock<std::mutex> lock(mutex);
        changed.wait(lock, [&] { return number != seen && offered; });
        task = offered, seen = number;
      }
      if (task->places.fetch_sub(1) > 0) task->work();
    }
  }

  std::mutex mutex;
  std::condition_variable changed;
  std::shared_ptr<Task> offered;
  std::atomic<long> number{0};  // of tasks offered
  int num_threads = 0;
};

// body(member) on up to num_threads threads, this one among them. stretches: how often a member shares, at most.
inline void run(int num_threads, int stretches, std::function<void(Member&)> body) {
  auto task = std::make_shared<Task>(stretches, num_threads - 1, std::move(body));
  if (num_threads > 1) Pool::one()->offer(task, num_threads - 1);
  task->work();
  if (num_threads > 1) Pool::one()->withdraw(task);
}
