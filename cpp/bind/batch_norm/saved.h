// What the backward pass needs of the forward one.
#pragma once

#include <memory>

#include "bind/batch_norm/arguments.h"

namespace fusedstep::bind {

struct BatchNormSaved {
  BatchView x;
  std::uint64_t fingerprint;
  bool overwritten;  // the output was written over x
  bool training;
  bool residual;
  double count;                           // values of a channel, of all workers
  Channels mean, inv_std;                 // as used
  Channels scale;                         // inv_std * weight
  std::shared_ptr<std::uint16_t[]> mask;  // null without activation
  std::int64_t mask_words;
  bool double_parameters;  // dweight and dbias are float64

  // Words of a mask of what relu lets pass, and one of zeros, for kernels read one word further.
  static std::int64_t words_of_mask(const BatchView& x);
  void make_mask();
  py::object mask_array() const;
};

// Of up to 512 places of an array: tells whether it has been overwritten since.
std::uint64_t fingerprint(const Array& array);

void register_batch_norm_saved(py::module_& m);
// What an engine that differentiates keeps of a forward pass, and how it is put together again.
void register_batch_norm_parts(py::module_& m);

}  // namespace fusedstep::bind
