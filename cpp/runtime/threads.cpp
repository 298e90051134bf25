#include "runtime/threads.h"

#include <omp.h>
#include <pthread.h>
#include <sched.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <mutex>
#include <stdexcept>
#include <string>
#include <vector>

#include "runtime/quota.h"

namespace fusedstep::runtime {
namespace {

std::atomic<int> chosen{0};
std::atomic<bool> forked{false};
std::atomic<bool> forced{false};

// Work on fewer bytes stays on one thread: to wake a team costs more than it saves, even where its threads spin (about
// two microseconds on two threads).
constexpr std::int64_t kSerialBytes = 256 * 1024;

// What parallel regions have been worth, in seconds. Several calling threads may race here: at worst a guess is off.
std::atomic<double> debt{0.0};                // seconds of help to forgo before the next region
std::atomic<double> seconds_per_byte{5e-11};  // of one thread, as last measured
std::atomic<int> failures{0};                 // in a row
constexpr int kMaxDoublings = 6;

double now() { return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count(); }

// `own` is the time of the calling thread for its share of the items, the smallest; the longest takes `longest` times
// that.
void learn(std::int64_t items, int team, std::int64_t bytes, double own, double wait) {
  const double shares = double(items) / double(items / team);
  const double longest = double((items + team - 1) / team) / double(items / team);
  seconds_per_byte = own * shares / double(bytes);
  const double lost = wait - own * (longest - 1.0), saved = own * (shares - longest);
  if (lost <= saved + 5e-6) {
    failures = 0;
    return;
  }
  // A short wait may be chance, such as an interrupt: it counts from the second in a row.
  if (failures == 0 && lost < 200e-6) {
    failures = 1;
    return;
  }
  // Not more than a second: a process that was stopped in a region has not been waiting.
  debt = std::min(1.0, lost * double(1 << failures));
  if (failures < kMaxDoublings) ++failures;
}

constexpr int kMaxThreads = 4096;

int affinity() {
  cpu_set_t set;
  if (sched_getaffinity(0, sizeof set, &set) == 0) return CPU_COUNT(&set);
  return omp_get_num_procs();
}

// The stack that OpenMP gives its threads: so many bytes, or KiB and so on by a letter; 0 for the system's own choice.
std::size_t stack_bytes() {
  for (const char* name : {"OMP_STACKSIZE", "GOMP_STACKSIZE"}) {
    const char* text = std::getenv(name);
    if (text == nullptr) continue;
    char* end = nullptr;
    const unsigned long long size = std::strtoull(text, &end, 10);
    if (end == text) continue;
    while (*end == ' ') ++end;
    const char* units = "bkmg";
    const char* unit = *end == '\0' ? units + 1 : std::strchr(units, *end | 0x20);
    if (unit != nullptr) return std::size_t(size) << (10 * (unit - units));
  }
  return 0;
}

std::mutex gate;

void* pass_gate(void*) {
  const std::lock_guard<std::mutex> passed(gate);
  return nullptr;
}

// How many threads the system starts, up to `wanted`, all running at once.
int startable(int wanted) {
  pthread_attr_t attributes;
  pthread_attr_init(&attributes);
  if (const std::size_t bytes = stack_bytes(); bytes > 0) pthread_attr_setstacksize(&attributes, bytes);
  std::vector<pthread_t> started;
  started.reserve(std::size_t(wanted));
  {
    const std::lock_guard<std::mutex> closed(gate);
    for (pthread_t thread; int(started.size()) < wanted; started.push_back(thread)) {
      if (pthread_create(&thread, &attributes, pass_gate, nullptr) != 0) break;
    }
  }
  for (const pthread_t thread : started) pthread_join(thread, nullptr);
  pthread_attr_destroy(&attributes);
  return int(started.size());
}

void (*tell_shortage)(int, int) = [](int, int) {};
std::atomic<bool> told{false};
// OpenMP keeps a team of its own for every calling thread.
thread_local int largest_team = 1;

// The size of the largest team, up to `threads`, that the system grants.
int team_of(int threads) {
  if (threads <= largest_team) return threads;
  const int wanted = threads - 1, started = startable(wanted);
  if (started == wanted) return largest_team = threads;
  // A margin is left to others, who start threads and take memory too.
  largest_team = std::max(largest_team, 1 + started - (started + 3) / 4);
  chosen = largest_team;
  if (!told.exchange(true)) tell_shortage(threads, largest_team);
  return largest_team;
}

// The number at the start of the variable ("4,2" of nested OpenMP is 4); 0 where unset, -1 where it is none.
int read_count(const char* name) {
  const char* text = std::getenv(name);
  if (text == nullptr || *text == '\0') return 0;
  char* end = nullptr;
  const long count = std::strtol(text, &end, 10);
  while (*end == ' ') ++end;
  const bool number = end != text && (*end == '\0' || *end == ',');
  return number && count > 0 && count <= kMaxThreads ? int(count) : -1;
}

int first_choice() {
  const int own = read_count("FUSEDSTEP_NUM_THREADS");
  if (own < 0) {
    throw std::invalid_argument("FUSEDSTEP_NUM_THREADS: expected a positive number, got '" +
                                std::string(std::getenv("FUSEDSTEP_NUM_THREADS")) + "'");
  }
  if (own > 0) return own;
  // OpenMP ignores a value that it cannot read, with a warning: so do we.
  const int openmp = read_count("OMP_NUM_THREADS");
  return openmp > 0 ? openmp : usable_processors("");
}

}  // namespace

int usable_processors(const std::string& root) {
  // A part of a processor is worth a thread: it works in that part of the time.
  const double quota = std::max(1.0, std::ceil(processor_quota(root)));
  return quota < double(affinity()) ? int(quota) : affinity();
}

void on_shortage(void (*tell)(int, int)) { tell_shortage = tell; }

int num_threads() {
  if (forked) return 1;
  if (chosen == 0) chosen = first_choice();
  return chosen;
}

void set_num_threads(std::int64_t threads) {
  if (threads < 1 || threads > kMaxThreads) {
    throw std::invalid_argument("num_threads: expected 1 to " + std::to_string(kMaxThreads) + ", got " +
                                std::to_string(threads));
  }
  if (threads > 1 && forked) {
    throw std::runtime_error(
        "num_threads: this process was forked from one that had loaded fusedstep; OpenMP's threads do not survive "
        "that, "
        "so it computes on 1 thread (start it with 'spawn' or 'forkserver' for more)");
  }
  chosen = int(threads);
  told = false;
}

void watch_forks() {
  pthread_atfork(nullptr, nullptr, [] { forked = true; });
}

void force_parallel(bool force) { forced = force; }

int threads_for(std::int64_t bytes) {
  const int threads = num_threads();
  if (threads == 1) return 1;
  if (forced) return team_of(threads);
  if (bytes < kSerialBytes) return 1;
  const double owed = debt;
  if (owed <= 0.0) return team_of(threads);
  debt = owed - double(bytes) * seconds_per_byte * (1.0 - 1.0 / threads);
  return 1;
}

void parallel_region(int threads, std::int64_t items, std::int64_t bytes, void (*body)(const void*, int, int),
                     const void* context) {
  if (forked) return body(context, 0, 1);
  const double start = now();
  double own_end = start;
  int team = 1;
#pragma omp parallel num_threads(threads)
  {
    body(context, omp_get_thread_num(), omp_get_num_threads());
    if (omp_get_thread_num() == 0) {
      own_end = now();
      team = omp_get_num_threads();
    }
  }
  if (team > 1 && !forced) learn(items, team, bytes, own_end - start, now() - own_end);
}

}  // namespace fusedstep::runtime
