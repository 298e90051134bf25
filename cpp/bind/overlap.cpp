#include "bind/overlap.h"

namespace fusedstep::bind {

bool overlap(const char* a, std::int64_t a_bytes, const char* b, std::int64_t b_bytes) {
  return a_bytes > 0 && b_bytes > 0 && a < b + b_bytes && b < a + a_bytes;
}

bool overlap(const Array& a, const Array& b) { return overlap(a.data, a.bytes, b.data, b.bytes); }

bool share_memory(py::handle a, py::handle b) {
  if (is_contiguous(a) && is_contiguous(b)) return overlap(span_of(a), span_of(b));
  try {
    // NumPy stops after so much work, which only contrived strides need; these count as overlapping.
    return py::module_::import("numpy").attr("shares_memory")(plain(a), plain(b), 10000).cast<bool>();
  } catch (py::error_already_set& error) {
    if (!error.matches(PyExc_RuntimeError)) throw;
    return true;
  }
}

void OverlapCheck::add_all(const OverlapCheck& other, std::int32_t shift) {
  const auto add = [&](std::vector<Span>& to, const std::vector<Span>& from) {
    for (Span span : from) {
      span.index += shift;
      to.push_back(span);
    }
  };
  add(written_, other.written_);
  add(read_, other.read_);
}

bool OverlapCheck::sort_written(const Span*& span, const Span*& other) {
  checked_written_.clear();
  sorted_.clear();
  for (const Span& one : written_) {
    if (one.bytes > 0) sorted_.push_back(one);
  }
  std::stable_sort(sorted_.begin(), sorted_.end(), [](const Span& a, const Span& b) { return a.data < b.data; });
  for (std::size_t k = 1; k < sorted_.size(); ++k) {
    const Span &a = sorted_[k - 1], &b = sorted_[k];
    if (!overlap(a.data, a.bytes, b.data, b.bytes)) continue;
    span = &b;
    other = &a;
    return false;
  }
  checked_written_ = written_;
  return true;
}

bool OverlapCheck::passes(const Span*& span, const Span*& other) {
  const auto same = [](const Span& a, const Span& b) { return a.data == b.data && a.bytes == b.bytes; };
  const auto unchanged = [&](const std::vector<Span>& now, const std::vector<Span>& before) {
    return std::equal(now.begin(), now.end(), before.begin(), before.end(), same);
  };
  const bool sorted = unchanged(written_, checked_written_);
  if (sorted && unchanged(read_, checked_read_)) return true;
  checked_read_.clear();
  if (!sorted && !sort_written(span, other)) return false;
  for (const Span& one : read_) {
    const auto after = std::lower_bound(sorted_.begin(), sorted_.end(), one.data + one.bytes,
                                        [](const Span& s, const char* end) { return s.data < end; });
    if (after == sorted_.begin() || !overlap((after - 1)->data, (after - 1)->bytes, one.data, one.bytes)) continue;
    span = &one;
    other = &*(after - 1);
    return false;
  }
  checked_read_ = read_;
  return true;
}

}  // namespace fusedstep::bind
