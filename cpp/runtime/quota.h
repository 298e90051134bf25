// The share of the processors that Linux's control groups grant.
#pragma once

#include <string>

namespace fusedstep::runtime {

// Processors that this process may keep busy: the least that any group on its path grants (cgroup v1 and v2), infinity
// where none limits it. `root` stands before every path that is read, "" for the machine's own.
double processor_quota(const std::string& root);

}  // namespace fusedstep::runtime
