// The rows of a batch.
#pragma once

#include <cstdint>

namespace fusedstep::runtime {

// out[k] = source[rows[k]], rows of so many bytes.
void gather_rows(const char* source, const std::int64_t* rows, char* out, std::int64_t count, std::int64_t row_bytes);

}  // namespace fusedstep::runtime
