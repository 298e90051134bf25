// The rules as the rest of the program sees them: names, hyper-parameters and states, without templates.
#pragma once

#include <string>
#include <vector>

#include "kernels/table.h"

namespace fusedstep::runtime {

struct Rule {
  const char* name;
  int index;  // of the kernel table's row
  std::vector<Field> fields;
  std::vector<const char*> states;
  std::vector<unsigned> keeps;  // by variant, bit k: it has the k-th state

  // Hyper-parameters are doubles in the order of the fields, tuples flattened.
  int (*variant)(const double* hypers);
  const char* (*refuse)(const double* hypers);  // null, or why these values do not go together
  double (*coupled_decay)(const double* hypers);
  void (*coefficients)(const double* hypers, Moment now, Dtype dtype, void* out);
};

const std::vector<Rule>& rules();
const Rule* find_rule(const std::string& name);

}  // namespace fusedstep::runtime
