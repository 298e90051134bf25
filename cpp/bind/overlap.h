// Which arrays lie in the same memory.
#pragma once

#include <algorithm>
#include <vector>

#include "bind/arrays.h"

namespace fusedstep::bind {

// Of bytes one after the other.
bool overlap(const char* a, std::int64_t a_bytes, const char* b, std::int64_t b_bytes);
bool overlap(const Array& a, const Array& b);
// The same of arrays of any strides.
bool share_memory(py::handle a, py::handle b);

// Checks many arrays: what is written must overlap neither each other nor what is read. The written ones are sorted
// once, for as long as all stay where they are.
class OverlapCheck {
 public:
  // The memory of an array, and how its owner finds its name again.
  struct Span {
    const char* data;
    std::int64_t bytes;
    std::int32_t index;
    std::int32_t role;
  };

  void clear() {
    written_.clear();
    read_.clear();
  }
  void add_written(const Span& span) { written_.push_back(span); }
  void add_read(const Span& span) { read_.push_back(span); }
  // All that another check was given, with `shift` added to the indices.
  void add_all(const OverlapCheck& other, std::int32_t shift);
  // Calls refuse(span, other), which throws, for a pair that overlaps.
  template <class Refuse>
  void run(const Refuse& refuse) {
    const Span *span = nullptr, *other = nullptr;
    if (!passes(span, other)) refuse(*span, *other);
  }

 private:
  bool passes(const Span*& span, const Span*& other);
  bool sort_written(const Span*& span, const Span*& other);

  std::vector<Span> written_, read_;
  std::vector<Span> checked_written_, checked_read_;  // what passed last
  std::vector<Span> sorted_;                          // the written ones of these, by address
};

}  // namespace fusedstep::bind
