// Writing many arrays as one: what may fail is done before the first is written, and no code of Python's runs between
// them, so that no exception, Ctrl-C's neither, leaves some written and others not.
#include <cstring>
#include <vector>

#include "bind/memory.h"
#include "bind/module.h"

namespace fusedstep::bind {
namespace {

struct Copy {
  char* to;
  const char* from;
  py::ssize_t item_bytes;
  std::vector<py::ssize_t> shape, to_strides, from_strides;
  bool dense;
};

Copy copy_of(py::handle to, py::handle from, const Label& label) {
  if (!is_array(to) || !is_array(from)) type_error(label, "expected a NumPy array");
  const auto *t = py::detail::array_proxy(to.ptr()), *f = py::detail::array_proxy(from.ptr());
  const auto descr = py::reinterpret_borrow<py::dtype>(t->descr), other = py::reinterpret_borrow<py::dtype>(f->descr);
  require_same_shape(from, label, to, label);
  // The names of dtypes are Python's code.
  if (!descr.equal(other) && (descr.itemsize() != other.itemsize() || dtype_text(to) != dtype_text(from))) {
    type_error(label, "expected values of dtype " + dtype_text(to) + ", got " + dtype_text(from));
  }
  if (descr.attr("hasobject").cast<bool>()) {
    type_error(label, "expected numbers, got " + dtype_text(to));
  }
  require_writable(to, label);
  require_alive(to, label);
  require_alive(from, label);
  Copy copy = {t->data,
               f->data,
               descr.itemsize(),
               {t->dimensions, t->dimensions + t->nd},
               {t->strides, t->strides + t->nd},
               {f->strides, f->strides + f->nd},
               same_layout(to, from)};
  if (copy.dense) {
    try {
      require_dense(to, label);
    } catch (const py::value_error&) {
      copy.dense = false;
    }
  }
  return copy;
}

void run(const Copy& copy, std::size_t axis, char* to, const char* from) {
  if (axis == copy.shape.size()) {
    std::memcpy(to, from, std::size_t(copy.item_bytes));
    return;
  }
  for (py::ssize_t i = 0; i < copy.shape[axis]; ++i) {
    run(copy, axis + 1, to + i * copy.to_strides[axis], from + i * copy.from_strides[axis]);
  }
}

void run(const Copy& copy) {
  py::ssize_t bytes = copy.item_bytes;
  for (const py::ssize_t length : copy.shape) bytes *= length;
  if (copy.dense) {
    if (bytes > 0) std::memmove(copy.to, copy.from, std::size_t(bytes));
  } else {
    run(copy, 0, copy.to, copy.from);
  }
}

void write(const py::list& targets, const py::list& values) {
  if (targets.size() != values.size()) {
    value_error({"values"},
                "expected " + std::to_string(targets.size()) + " arrays, got " + std::to_string(values.size()));
  }
  std::vector<Copy> copies;
  for (std::size_t k = 0; k < targets.size(); ++k) {
    copies.push_back(copy_of(py::object(targets[k]), py::object(values[k]), {"params", py::ssize_t(k)}));
  }
  for (const Copy& copy : copies) run(copy);
}

std::vector<py::handle> handles(const py::list& objects) { return {objects.begin(), objects.end()}; }

// Whether somebody's values are in the place of the weights' own.
struct Presence {
  bool away = false;
};

// Holds other values in arrays between __enter__ and __exit__, which are native: there is no line of Python between
// them and the body of a with block where an interrupt could come.
class Exchange {
 public:
  Exchange(py::list targets, py::list values, py::list owners, py::object presence)
      : targets_(std::move(targets)),
        values_(std::move(values)),
        owners_(std::move(owners)),
        presence_(std::move(presence)) {}

  void enter() {
    auto& presence = presence_.cast<Presence&>();
    if (presence.away) {
      throw std::runtime_error("with: the weights hold other values until the end of the with block");
    }
    py::list before;
    for (const py::handle target : targets_) before.append(target.attr("copy")("K"));
    before_ = std::move(before);
    wrote(handles(owners_));
    write(targets_, values_);
    presence.away = true;
  }

  void exit(const py::args&) {
    auto& presence = presence_.cast<Presence&>();
    if (!presence.away) return;
    presence.away = false;
    std::vector<Copy> copies;
    py::list now;
    std::exception_ptr failure;
    for (std::size_t k = 0; k < owners_.size(); ++k) {
      const Label label = {"params", py::ssize_t(k)};
      try {
        // The memory may have moved meanwhile.
        py::object target = view_by_table(py::object(owners_[k]), label);
        if (!target) target = py::object(targets_[k]);
        now.append(target);
        copies.push_back(copy_of(target, before_[py::int_(k)], label));
      } catch (...) {
        failure = std::current_exception();
      }
    }
    for (const Copy& copy : copies) run(copy);
    before_ = {};
    if (failure) std::rethrow_exception(failure);
    wrote(handles(owners_));
  }

 private:
  py::list targets_, values_, owners_;
  py::object before_, presence_;
};

}  // namespace

void register_exchange(py::module_& m) {
  m.def("write", &write);
  py::class_<Presence>(m, "Presence").def(py::init<>()).def_readonly("away", &Presence::away);
  py::class_<Exchange>(m, "Exchange")
      .def(py::init<py::list, py::list, py::list, py::object>())
      .def("__enter__", &Exchange::enter)
      .def("__exit__", &Exchange::exit);
}

}  // namespace fusedstep::bind
