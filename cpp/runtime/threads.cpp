#include "runtime/threads.h"

#include <omp.h>
#include <pthread.h>
#include <sched.h>

#include <atomic>
#include <cstdlib>
#include <stdexcept>
#include <string>

namespace fusedstep::runtime {
namespace {

std::atomic<int> chosen{0};
std::atomic<bool> forked{false};

int usable_processors() {
  cpu_set_t set;
  if (sched_getaffinity(0, sizeof set, &set) == 0) return CPU_COUNT(&set);
  return omp_get_num_procs();
}

// The number at the start of the variable ("4,2" of nested OpenMP is 4); 0 where unset, -1 where it is none.
int read_count(const char* name) {
  const char* text = std::getenv(name);
  if (text == nullptr || *text == '\0') return 0;
  char* end = nullptr;
  const long count = std::strtol(text, &end, 10);
  while (*end == ' ') ++end;
  const bool number = end != text && (*end == '\0' || *end == ',');
  return number && count > 0 && count <= 4096 ? int(count) : -1;
}

int first_choice() {
  const int own = read_count("FUSEDSTEP_NUM_THREADS");
  if (own < 0) {
    throw std::invalid_argument("FUSEDSTEP_NUM_THREADS: expected a positive number, got '" +
                                std::string(std::getenv("FUSEDSTEP_NUM_THREADS")) + "'");
  }
  if (own > 0) return own;
  // A value that OpenMP cannot read it ignores with a warning, and so do we.
  const int openmp = read_count("OMP_NUM_THREADS");
  return openmp > 0 ? openmp : usable_processors();
}

}  // namespace

int num_threads() {
  if (forked) return 1;
  if (chosen == 0) chosen = first_choice();
  return chosen;
}

void set_num_threads(int threads) {
  if (threads < 1) throw std::invalid_argument("num_threads: expected at least 1, got " + std::to_string(threads));
  if (threads > 1 && forked) {
    throw std::runtime_error(
        "num_threads: this process was forked from one that had loaded fusedstep; OpenMP's threads do not survive that, "
        "so it computes on 1 thread (start it with 'spawn' or 'forkserver' for more)");
  }
  chosen = threads;
}

void watch_forks() {
  pthread_atfork(nullptr, nullptr, [] { forked = true; });
}

void parallel_region(int threads, void (*body)(const void*, int, int), const void* context) {
  if (forked) {
    body(context, 0, 1);
    return;
  }
#pragma omp parallel num_threads(threads)
  body(context, omp_get_thread_num(), omp_get_num_threads());
}

}  // namespace fusedstep::runtime
