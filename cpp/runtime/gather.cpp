#include "runtime/gather.h"

#include <cstring>

#include "runtime/threads.h"

namespace fusedstep::runtime {

void gather_rows(const char* source, const std::int64_t* rows, char* out, std::int64_t count, std::int64_t row_bytes) {
  // Rows lie anywhere in memory, where the processor's own prefetch does not look.
  constexpr std::int64_t kAhead = 4, kLine = 64, kFetched = 4096;
  const std::int64_t bytes = 2 * count * row_bytes;
  parallel_for(count, threads_for(bytes), bytes, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t k = begin; k < end; ++k) {
      if (k + kAhead < end) {
        const char* next = source + rows[k + kAhead] * row_bytes;
        for (std::int64_t i = 0; i < row_bytes && i < kFetched; i += kLine) __builtin_prefetch(next + i);
      }
      std::memcpy(out + k * row_bytes, source + rows[k] * row_bytes, std::size_t(row_bytes));
    }
  });
}

}  // namespace fusedstep::runtime
