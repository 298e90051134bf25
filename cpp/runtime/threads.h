// How many threads, and the one parallel region that everything runs in.
#pragma once

#include <cstdint>
#include <string>

namespace fusedstep::runtime {

// The processors that this process may use: those of its affinity, and no more than its control groups let it keep
// busy, a part of one counted as one. `root`: see processor_quota.
int usable_processors(const std::string& root);

// FUSEDSTEP_NUM_THREADS, else OMP_NUM_THREADS, else the processors that this process may use. Throws
// std::invalid_argument for a FUSEDSTEP_NUM_THREADS that is no positive number.
int num_threads();
void set_num_threads(std::int64_t threads);

// OpenMP's threads outlive no fork, and a region that waits for them hangs. Whether any library of the process has
// started them cannot be asked, so from this call on every forked child computes on one thread.
void watch_forks();

// What a region is expected to be worth. It ends when its last thread does, and where others keep the processors busy
// (OpenBLAS's threads spin for a while after every product) one thread may not run for milliseconds. So regions are
// watched: after a wait that cost more than the help was worth, work stays on the calling thread until the help that it
// forgoes adds up to that loss, longer each time it happens again.
//
// Forced, every region is parallel, however small: for tests and for benches of a given number of threads.
void force_parallel(bool forced);

// OpenMP ends the process when it cannot start a thread. So before a calling thread's first larger team as many threads
// are started, all at once, and ended; where the system refuses some, num_threads() falls to what it grants less a
// margin, and `tell(asked, granted)` is called, once for each number that was set. It may throw.
void on_shortage(void (*tell)(int asked, int granted));

// The threads to use for work that moves so many bytes. To be asked before anything is written.
int threads_for(std::int64_t bytes);

// Runs body(context, thread, team) on each thread of a team that shares out so many items.
void parallel_region(int threads, std::int64_t items, std::int64_t bytes,
                     void (*body)(const void* context, int thread, int team), const void* context);

// Calls body(begin, end) on contiguous parts of [0, items), one a thread, and waits for all. The parts depend on the
// number of threads; what is computed must not.
template <class Body>
void parallel_for(std::int64_t items, int threads, std::int64_t bytes, const Body& body) {
  if (threads > items) threads = int(items);
  if (threads <= 1) {
    if (items > 0) body(std::int64_t{0}, items);
    return;
  }
  struct Context {
    const Body& body;
    std::int64_t items;
  };
  const Context context = {body, items};
  parallel_region(
      threads, items, bytes,
      [](const void* opaque, int thread, int team) {
        const auto& c = *static_cast<const Context*>(opaque);
        c.body(c.items * thread / team, c.items * (thread + 1) / team);
      },
      &context);
}

}  // namespace fusedstep::runtime
