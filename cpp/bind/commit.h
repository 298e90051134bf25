// Writes of which all happen or none: whatever may fail comes before the first.
#pragma once

#include <vector>

#include "bind/arrays.h"

namespace fusedstep::bind {

// Entries of dicts that are taken back unless `keep` is called. No Python code runs, so no interrupt comes between two.
class Ledger {
 public:
  explicit Ledger(std::size_t expected = 4) { entries_.reserve(expected); }
  Ledger(const Ledger&) = delete;
  Ledger& operator=(const Ledger&) = delete;
  ~Ledger();

  void put(py::handle dict, py::handle key, py::handle value);
  void keep() { entries_.clear(); }
  bool empty() const { return entries_.empty(); }

 private:
  struct Entry {
    py::object dict, key;
    PyObject* before;  // owned; null: there was none
    ~Entry() { Py_XDECREF(before); }
    Entry(py::object d, py::object k, PyObject* b) : dict(std::move(d)), key(std::move(k)), before(b) {}
    Entry(Entry&& other) noexcept
        : dict(std::move(other.dict)), key(std::move(other.key)), before(std::exchange(other.before, nullptr)) {}
    Entry(const Entry&) = delete;
    Entry& operator=(const Entry&) = delete;
    Entry& operator=(Entry&&) = delete;
  };
  std::vector<Entry> entries_;
};

// Values for arrays of the same shape and dtype, checked as they are added and copied together. TypeError, ValueError.
class Writes {
 public:
  void add(py::handle target, py::handle value, const Label& label = {"writes"});
  void run() const noexcept;
  void clear() { copies_.clear(); }

 private:
  struct Copy {
    py::object target, value;
    py::ssize_t item;
    bool dense;  // both: one block of memory in the same order
  };
  std::vector<Copy> copies_;
};

}  // namespace fusedstep::bind
