// Writing many arrays as one. What may fail comes before the first is written, and no Python code runs between them: no
// exception, not even Ctrl-C, leaves some written and others not.
#include <vector>

#include "bind/commit.h"
#include "bind/memory.h"
#include "bind/module.h"

namespace fusedstep::bind {
namespace {

void write(const py::list& targets, const py::list& values) {
  if (targets.size() != values.size()) {
    value_error({"values"},
                "expected " + std::to_string(targets.size()) + " arrays, got " + std::to_string(values.size()));
  }
  Writes writes;
  for (std::size_t k = 0; k < targets.size(); ++k) {
    writes.add(py::object(targets[k]), py::object(values[k]), {"params", py::ssize_t(k)});
  }
  writes.run();
}

std::vector<py::handle> handles(const py::list& objects) { return {objects.begin(), objects.end()}; }

// Whether the weights hold other values than their own at the moment.
struct Presence {
  bool away = false;
};

// A context manager: its arrays hold other values inside of the with block. __enter__ and __exit__ are native, so that
// there is no line of Python between them and the block where an interrupt could come.
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
    Writes writes;
    std::exception_ptr failure;
    for (std::size_t k = 0; k < owners_.size(); ++k) {
      const Label label = {"params", py::ssize_t(k)};
      try {
        // The memory may have moved meanwhile.
        py::object target = view_by_table(py::object(owners_[k]), label);
        if (!target) target = py::object(targets_[k]);
        writes.add(target, before_[py::int_(k)], label);
      } catch (...) {
        failure = std::current_exception();
      }
    }
    writes.run();
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
  py::class_<Presence>(m, "Presence", whole_from_birth()).def(py::init<>()).def_readonly("away", &Presence::away);
  py::class_<Exchange>(m, "Exchange", whole_from_birth())
      .def(py::init<py::list, py::list, py::list, py::object>())
      .def("__enter__", &Exchange::enter)
      .def("__exit__", &Exchange::exit);
}

}  // namespace fusedstep::bind
