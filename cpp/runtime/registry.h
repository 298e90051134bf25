// The rules as the rest of the program sees them: names, hyper-parameters and states, without templates.
#pragma once

#include <string>
#include <vector>

#include "kernels/abi/table.h"

namespace fusedstep::runtime {

struct Rule {
  const char* name;
  int index;  // its row in the kernel table
  std::vector<Field> fields;
  std::vector<const char*> states;
  std::vector<Shape> shapes;
  std::vector<unsigned> keeps;  // by variant, bit k: it has the k-th state
  std::vector<const char*> scalars;
  bool shared_scalars;  // one set for all tensors, and the sums are taken over all of them together
  unsigned copies;      // bit k: the k-th state begins as the parameter
  unsigned exact;       // is always stored in the dtype of the arithmetic: copies, reduced shapes, and what needs it
  unsigned squares;     // never falls below 0
  int first_moment;
  double moment_sign;
  int sums;
  bool cautious, sparse, dense, native, begins_with_lr;
  bool norms;

  // Hyper-parameters are doubles in the order of the fields, tuples flattened.
  int (*variant)(const double* hypers);
  int (*variant_of)(const double* hypers, int axes);  // -1: that of variant()
  const char* (*refuse)(const double* hypers);        // null, or why these values do not go together
  const char* (*refuse_sparse)(const double* hypers);
  const char* (*refuse_axes)(int axes);
  const char* (*refuse_bits)(const double* hypers, int bits);
  double (*coupled_decay)(const double* hypers);
  double (*initial)(const double* hypers, int state);
  double (*initial_scalar)(const double* hypers, int scalar);
  // The coefficients of a step; moves the scalars on.
  void (*coefficients)(const double* hypers, Moment now, Dtype dtype, double* scalars, void* out);
  // What follows from the sums: what a tensor adds to the totals, the shared scalars, the rest of the coefficients.
  void (*weigh)(const double* hypers, Moment now, const double* scalars, double* sums);
  void (*share)(const double* hypers, const double* totals, double* scalars);
  void (*settle)(const double* hypers, Dtype dtype, const double* sums, const double* scalars, void* coefficients);
};

const std::vector<Rule>& rules();
const Rule* find_rule(const std::string& name);

}  // namespace fusedstep::runtime
