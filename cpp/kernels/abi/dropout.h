// Dropout.
#pragma once

#include <cstdint>

#include "kernels/abi/dtype.h"

namespace fusedstep {

struct DropoutArgs {
  const void* x;
  const void* residual;  // null: none
  void* y;
  std::uint64_t key;        // of the random words
  std::uint64_t offset;     // the number of the first choice
  std::int64_t unit;        // elements that share a choice
  std::uint32_t threshold;  // words below it drop
  double scale;
  bool stream;
};

// Elements [begin, end). [stored dtype][residual]
struct DropoutKernels {
  void (*dropout[kDtypes][2])(const DropoutArgs&, std::int64_t begin, std::int64_t end);
  // The words of groups [group, group + groups), for tests.
  void (*philox)(std::uint64_t key, std::uint64_t upper, std::uint64_t group, std::int64_t groups,
                 std::uint32_t* words);
};

}  // namespace fusedstep
