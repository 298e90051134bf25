// What a cross-entropy wants of every row: a class, or a probability of each.
#pragma once

#include "bind/losses/work.h"

namespace fusedstep::bind {

// Reads labels, which are integers, or probabilities like the logits. TypeError, ValueError.
void read_labels(const py::object& given, CrossEntropyWork& work);
// Reads the weights of the classes, finite and not negative; None for none.
void read_weight(const py::object& given, CrossEntropyWork& work);

}  // namespace fusedstep::bind
