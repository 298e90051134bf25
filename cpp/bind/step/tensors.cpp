// A step of an optimizer that keeps its groups and its state as PyTorch's do: of tensors whose type has DLPack's table
// of functions, in one call.
// It is longer than other files, for reading, stepping and writing share the workspace of one class.
#include <cmath>
#include <cstdint>
#include <optional>

#include "bind/memory.h"
#include "bind/module.h"
#include "bind/step/engine.h"
#include "bind/step/report.h"
#include "bind/step/shell.h"

namespace fusedstep::bind {
namespace {

py::object hold(py::handle object) { return py::reinterpret_borrow<py::object>(object); }

py::handle interned(const char* name) { return PyUnicode_InternFromString(name); }

struct Names {
  py::handle params = interned("params");
  py::handle grad = interned("grad");
  py::handle grads = interned("_grads");
  py::handle step = interned("step");
  py::handle ema = interned("ema");
  py::handle master = interned("master");
};

const Names& names() {
  static const Names all;
  return all;
}

// What a step adds to the state: entries of parameters.
struct Addition {
  std::size_t item;
  py::handle name;
  py::object value;
};

// Which parameters count their steps: all, in a tensor as PyTorch does or in a number; or those whose options need it.
enum class Counts { tensor, number, where_needed };

class TensorStep {
 public:
  TensorStep(const std::string& rule, const std::string& counts)
      : engine_(rule, Naming::tensors),
        counts_(counts == "tensor"   ? Counts::tensor
                : counts == "number" ? Counts::number
                                     : Counts::where_needed) {
    const auto intern = [](const std::string& name) { return hold(interned(name.c_str())); };
    for (const char* name : engine_.rule().states) state_names_.push_back(intern(name));
    for (int s = 0; s < engine_.states(); ++s) scales_names_.push_back(intern(engine_.scales_name(s)));
    for (const char* name : engine_.rule().scalars) scalar_names_.push_back(intern(name));
  }

  // Hyper-parameters and options, as a step would find them.
  void check(const py::list& groups) {
    const Turn turn(*this, groups);
    read_groups();
  }

  // False where no parameter has a gradient, or the step was skipped. `parts`: None, or of each parameter None or its
  // (number, offset, whole, follows) or (…, first), see Part; `add`: None, or see Peers; `measured`: None, or (value,
  // exponent, nonfinite), the squares of all gradients together and how many elements are not finite, where that is
  // known.
  bool step(const py::list& groups, const py::dict& state, double grad_scale, const py::object& parts,
            const py::object& add, const py::object& measured) {
    const Turn turn(*this, groups);
    if (!collect(state, parts)) return false;
    std::optional<GradientSquares> known;
    if (!measured.is_none()) {
      const auto [value, exponent, nonfinite] = measured.cast<std::tuple<double, int, double>>();
      known = GradientSquares{{value, exponent}, nonfinite};
    }
    const std::optional<Peers> peers = add.is_none() ? std::nullopt : std::optional<Peers>(add);
    Ledger ledger(additions_.size());
    const auto settle = [&](const Outcome&) { enter(ledger); };
    const Outcome& outcome = engine_.run(items_, settings_, shared_, grad_scale, std::ref(settle),
                                         peers ? &*peers : nullptr, known ? &*known : nullptr);
    if (!outcome.skipped) {
      advance();
      ledger.keep();
      wrote_tensors(written_);
      ++taken_;
    }
    remember(outcome);
    return !outcome.skipped;
  }

  // The states of the parameters that have a gradient, as they begin: no step.
  void begin(const py::list& groups, const py::dict& state) {
    const Turn turn(*this, groups);
    state_ = state;
    read_groups();
    collect_items();
    look_at_items();
    for (std::size_t k = 0; k < items_.size(); ++k) collect_state(k);
    read_shared();
    Ledger ledger(additions_.size());
    enter_new(ledger);
    enter_shared(ledger);
    ledger.keep();
  }

  // All checks of a step, which writes nothing.
  void check_step(const py::list& groups, const py::dict& state, double grad_scale) {
    const Turn turn(*this, groups);
    makes_ = false;
    if (!collect(state, py::none())) return engine_.forget();
    engine_.check(items_, settings_, shared_, grad_scale);
  }

  // ValueError where what the last checks of two steps saw overlaps.
  void refuse_overlaps(const py::list& groups, TensorStep& other, const py::list& its_groups) {
    const Turn turn(*this, groups), its_turn(other, its_groups);
    engine_.refuse_overlaps(other.engine_);
  }

  // Of each parameter that has a gradient (value, exponent, nonfinite): its squares, and how many elements are not
  // finite. `before`: None, or of each parameter the squares of the elements before these, where its sum goes on.
  py::list measure(const py::list& groups, const py::object& before) {
    const Turn turn(*this, groups);
    state_ = py::dict();
    read_groups();
    collect_items();
    py::list all;
    if (items_.empty()) return all;
    look_at_items();
    for (Item& item : items_) {
      if (!before.is_none()) item.part.squares = before[py::int_(item.index)].cast<double>();
    }
    for (const GradientSquares& sums : engine_.measure(items_, settings_)) {
      all.append(py::make_tuple(sums.squares.value, sums.squares.exponent, sums.nonfinite));
    }
    return all;
  }

  // Of the last step that had a gradient; None before.
  py::object report() const {
    if (lrs_.empty()) return py::none();
    return make_report(outcome_, {taken_, lrs_, clips_, shells_.size(), reported_});
  }
  std::int64_t taken() const { return taken_; }
  void set_taken(std::int64_t taken) { taken_ = taken; }

 private:
  // One call at a time: the workspace is shared.
  class Turn {
   public:
    Turn(TensorStep& step, const py::list& groups) : step_(step) {
      if (step_.busy_) throw std::runtime_error("step: this optimizer is in the middle of a step");
      step_.busy_ = true;
      step_.groups_ = groups;
      step_.written_ = py::list();
      step_.makes_ = true;
      step_.engine_.name_after(groups);
    }
    ~Turn() {
      step_.engine_.name_after({});
      // Held only meanwhile: the garbage collector cannot see what a native object holds.
      step_.items_.clear();
      step_.cells_.clear();
      step_.held_.clear();
      step_.additions_.clear();
      step_.groups_ = py::object();
      step_.state_ = py::object();
      step_.written_ = py::object();
      step_.busy_ = false;
    }

   private:
    TensorStep& step_;
  };

  Label label(const char* role, py::ssize_t index, const char* key = nullptr) const {
    return {role, index, key, groups_.ptr()};
  }
  Label label(const Item& item, int s) const {
    return label("state", item.index, engine_.rule().states[std::size_t(s)]);
  }

  // What a report of this step needs, which is made where somebody asks for it.
  void remember(const Outcome& outcome) {
    outcome_ = outcome;
    reported_.clear();
    lrs_.clear();
    for (const Settings& settings : settings_) lrs_.push_back(engine_.lr_of(settings));
    clips_ = settings_[0].whole.clip;
    if (!outcome.measured) return;
    for (const Item& item : items_) reported_.emplace_back().index = item.index;
  }

  void read_groups() {
    settings_.clear();
    for (const py::handle group : py::reinterpret_borrow<py::list>(groups_)) {
      if (!PyDict_Check(group.ptr())) type_error({"param_groups"}, "expected dicts, got " + kind_text(group));
      settings_.push_back(engine_.read(group, Schedules::refuse, 0));
      require_agreement(engine_.rule(), settings_[0], settings_.back());
    }
  }

  py::object params_of(std::size_t group) const {
    const py::object of = hold(PyList_GET_ITEM(groups_.ptr(), py::ssize_t(group)));
    const py::object params = PyDict_Check(of.ptr()) ? hold(get(of, names().params)) : py::object();
    if (!params || !PyList_Check(params.ptr())) {
      type_error({"param_groups", py::ssize_t(group), "params"}, "expected a list");
    }
    return params;
  }

  // A group's gradients beside its parameters, where those have none of their own; null: they have.
  py::object grads_of(const py::object& group, py::handle params) const {
    const py::handle given = get(group, names().grads);
    if (!given) return {};
    if (!PyList_Check(given.ptr()) || PyList_GET_SIZE(given.ptr()) != PyList_GET_SIZE(params.ptr())) {
      type_error({"param_groups"}, "expected as many '_grads' as 'params'");
    }
    return hold(given);
  }

  // All that a step needs; false where no parameter has a gradient.
  bool collect(const py::dict& state, const py::object& parts) {
    state_ = state;
    read_groups();
    collect_items();
    if (items_.empty()) return false;
    read_parts(parts);
    look_at_items();
    for (std::size_t k = 0; k < items_.size(); ++k) collect_state(k);
    read_shared();
    return true;
  }

  // Parameters that have a gradient. Groups may change while a getter of somebody's runs: nothing of theirs is
  // borrowed.
  void collect_items() {
    py::ssize_t index = 0;
    for (std::size_t g = 0; g < settings_.size(); ++g) {
      if (py::ssize_t(g) >= PyList_GET_SIZE(groups_.ptr())) break;
      const py::object params = params_of(g);
      const py::object grads = grads_of(hold(PyList_GET_ITEM(groups_.ptr(), py::ssize_t(g))), params);
      for (py::ssize_t k = 0; k < PyList_GET_SIZE(params.ptr()); ++k, ++index) {
        py::object param = hold(PyList_GET_ITEM(params.ptr(), k));
        auto grad = grads && k < PyList_GET_SIZE(grads.ptr())
                        ? hold(PyList_GET_ITEM(grads.ptr(), k))
                        : py::reinterpret_steal<py::object>(PyObject_GetAttr(param.ptr(), names().grad.ptr()));
        if (!grad) throw py::error_already_set();
        if (grad.is_none()) continue;
        Item& item = items_.emplace_back();
        item.group = int(g);
        item.index = index;
        item.owner = std::move(param);
        item.grad = std::move(grad);
      }
    }
    if (std::size_t(index) > shells_.size()) shells_.resize(std::size_t(index));
    find_entries();
  }

  void read_parts(const py::object& parts) {
    if (parts.is_none()) return;
    const py::list all = parts;
    for (Item& item : items_) {
      const py::object part = all[std::size_t(item.index)];
      if (part.is_none()) continue;
      const auto of_item = py::reinterpret_borrow<py::tuple>(part);
      item.part = {of_item[0].cast<std::int64_t>(), of_item[1].cast<std::int64_t>(), of_item[2].cast<std::int64_t>(),
                   of_item[3].cast<bool>(), of_item.size() > 4 && of_item[4].cast<bool>()};
    }
  }

  // The state has its entries in the order in which parameters were first stepped, mostly that of the groups: a walk
  // along it finds them without asking tensors for their hashes, which is Python's code.
  void find_entries() {
    PyObject *key = nullptr, *value = nullptr;
    py::ssize_t place = 0;
    const auto next = [&] { return PyDict_Next(state_.ptr(), &place, &key, &value) != 0; };
    bool more = next();
    for (Item& item : items_) {
      if (more && key == item.owner.ptr()) {
        item.entry = hold(value);
        more = next();
      } else {
        item.entry = hold(get(state_, item.owner));
        if (!item.entry) continue;
        while (more && key != item.owner.ptr()) more = next();
        more = more && next();
      }
      if (!PyDict_Check(item.entry.ptr())) {
        type_error(label("state", item.index), "expected a dict, got " + kind_text(item.entry));
      }
    }
  }

  static py::handle tensors() {
    static const py::handle module = py::module_::import("fusedstep.torch.optim.tensors").release();
    return module;
  }

  // What an object holds now, as an array: by the table of its type; else by what `fusedstep.torch` makes of it.
  py::object look(Shell& shell, py::handle object, const Label& label) const {
    dlpack::Tensor tensor = {};
    bool moved = true;
    if (read_by_table(object, tensor)) {
      py::object array = shell.lead(tensor, moved);
      if (array && (!moved || !is_torch_tensor(object))) return array;
      if (array && is_plain_tensor(object, tensor, label)) {
        refuse_inference(object, label);
        return array;
      }
    }
    return bind::view(tensors().attr("local")(object, label.text()), label);
  }

  // Such a tensor counts no versions.
  static void refuse_inference(py::handle tensor, const Label& label) {
    static const py::handle name = interned("is_inference");
    const auto made = py::reinterpret_steal<py::object>(PyObject_CallMethodNoArgs(tensor.ptr(), name.ptr()));
    if (!made) throw py::error_already_set();
    if (made.is(py::handle(Py_True)))
      value_error(label, "expected a tensor that autograd knows, got one made in inference mode");
  }

  void look_at_items() {
    bool again = !engine_.rule().dense;
    for (Item& item : items_) {
      Shells& shells = shells_[std::size_t(item.index)];
      item.param = look(shells.param, item.owner, label("params", item.index));
      dlpack::Tensor tensor = {};
      bool moved = true;
      py::object array;
      if (read_by_table(item.grad, tensor)) array = shells.grad.lead(tensor, moved);
      const Label its = label("grads", item.index);
      if (array && (!moved || is_plain_tensor(item.grad, tensor, its))) {
        held_.push_back(std::exchange(item.grad, std::move(array)));
      } else {
        py::object seen = tensors().attr("gradient")(item.grad, its.text());
        held_.push_back(std::move(item.grad));
        again = again || !is_torch_tensor(seen);
        item.grad = is_torch_tensor(seen) ? bind::view(seen, its) : std::move(seen);
      }
    }
    if (again) engine_.view(items_);
  }

  // Whether a reference that PyTorch takes is one of Python's too, as that of a tensor saved for a backward pass.
  static bool references_tell() {
    static const bool tell = tensors().attr("REFERENCES_TELL").cast<bool>();
    return tell;
  }

  // To be told of the write: a tensor of an entry's, but where the entry and we alone know of it, and so nobody can
  // ask.
  void note(const py::object& tensor) {
    if (Py_REFCNT(tensor.ptr()) > 2 || !references_tell()) PyList_Append(written_.ptr(), tensor.ptr());
  }

  py::object state_array(Shell& shell, py::object tensor, const Label& label) {
    note(tensor);
    py::object array = look(shell, tensor, label);
    held_.push_back(std::move(tensor));
    return array;
  }

  // An entry's value; null where it is missing or None, which stands for that in some of PyTorch's.
  static py::object value_of(const Item& item, py::handle name) {
    if (!item.entry) return {};
    const py::handle found = get(item.entry, name);
    return found && !found.is_none() ? hold(found) : py::object();
  }

  // The states that an entry has, a bit each.
  unsigned states_in(const Item& item) const {
    unsigned there = 0;
    for (int s = 0; s < engine_.states(); ++s)
      there |= unsigned(bool(value_of(item, state_names_[std::size_t(s)]))) << s;
    return there;
  }

  // A state that an entry lacks begins now where the entry is new, or has what other hyper-parameters need.
  void refuse_missing(const Item& item, const Label& its) const {
    if (!item.entry || PyDict_GET_SIZE(item.entry.ptr()) == 0) return;
    const unsigned there = states_in(item);
    for (const unsigned keeps : engine_.rule().keeps) {
      if (keeps == there) return;
    }
    say_missing(item, its);
  }

  [[noreturn]] static void say_missing(const Item& item, const Label& its) {
    value_error(its, "missing, and the state has " + std::string(py::repr(py::list(item.entry))));
  }

  void collect_state(std::size_t k) {
    Item& item = items_[k];
    Shells& shells = shells_[std::size_t(item.index)];
    const Settings& settings = settings_[std::size_t(item.group)];
    PyList_Append(written_.ptr(), item.owner.ptr());
    item.variant = engine_.variant_for(settings, item.param);
    item.first = item.part.first;
    for (int s = 0; s < engine_.states(); ++s) {
      if (!engine_.keeps(item, s)) continue;
      const Label its = label(item, s);
      py::object tensor = value_of(item, state_names_[std::size_t(s)]);
      if (!tensor) {
        refuse_missing(item, its);
        item.first = true;
        if (!makes_) continue;
        tensor = make_state(k, s);
      }
      item.state[s] = state_array(shells.state[s], std::move(tensor), its);
      if (!is_codes(item.state[s])) continue;
      if (py::object scales = scales_of(k, s)) {
        const Label of_scales = label("state", item.index, engine_.scales_name(s).c_str());
        item.scales[s] = state_array(shells.scales[s], std::move(scales), of_scales);
      }
    }
    collect_copy(k, settings.average, names().ema, shells.ema, item.ema);
    collect_copy(k, settings.master && is_narrow(item), names().master, shells.master, item.master);
    collect_numbers(k);
  }

  bool is_narrow(const Item& item) const {
    const Dtype dtype = inspect_stored(item.param, label("params", item.index)).dtype;
    return maths_dtype(dtype) != dtype;
  }

  static bool is_codes(py::handle array) { return py::reinterpret_borrow<py::dtype>(descr_of(array)).itemsize() == 1; }

  // What was made for the item, it was a moment ago.
  py::object scales_of(std::size_t k, int s) const {
    const py::handle name = scales_names_[std::size_t(s)];
    if (!additions_.empty() && additions_.back().item == k && additions_.back().name.is(name)) {
      return additions_.back().value;
    }
    return value_of(items_[k], name);
  }

  // A copy of the parameter, kept where `kept`.
  void collect_copy(std::size_t k, bool kept, py::handle name, Shell& shell, py::object& array) {
    if (!kept) return;
    Item& item = items_[k];
    py::object tensor = value_of(item, name);
    if (!tensor) {
      if (!makes_) return;
      tensor = tensors().attr("copied")(item.owner);
      additions_.push_back({k, name, tensor});
    }
    array = state_array(shell, std::move(tensor), label("state", item.index, name.is(names().ema) ? "ema" : "master"));
  }

  // New states of a parameter, which the entry has not yet.
  py::object make_state(std::size_t k, int s) {
    const Item& item = items_[k];
    const Settings& settings = settings_[std::size_t(item.group)];
    const runtime::Rule& rule = engine_.rule();
    const Array param = inspect_stored(item.param, label("params", item.index));
    runtime::StepTensor tensor = {};
    tensor.dtype = maths_dtype(param.dtype);
    tensor.size = param.size;
    const Dtype stored = new_state_dtype(rule, settings, tensor, s);
    const char* const shapes[] = {"same", "rows", "columns"};
    const py::tuple made = tensors().attr("new_state")(
        item.owner, is_code(stored) ? stored == Dtype::signed8 ? "int8" : "uint8" : dtype_name(stored),
        shapes[int(rule.shapes[std::size_t(s)])], rule.initial(settings.hypers, s), bool(rule.copies >> s & 1));
    additions_.push_back({k, state_names_[std::size_t(s)], made[0]});
    if (!made[1].is_none()) additions_.push_back({k, scales_names_[std::size_t(s)], made[1]});
    return made[0];
  }

  bool counts(const Settings& settings) const {
    return counts_ != Counts::where_needed || settings.ema_warmup || settings.random_param ||
           settings.state_dtype != Dtype::float32;
  }

  // The count of steps and the rule's own numbers.
  void collect_numbers(std::size_t k) {
    Item& item = items_[k];
    const Settings& settings = settings_[std::size_t(item.group)];
    const runtime::Rule& rule = engine_.rule();
    Cells& cells = cells_.emplace_back();
    const auto collect = [&](Cell& cell, py::handle name, const char* text, double initial, bool tensor,
                             bool optional) {
      py::object value = value_of(item, name);
      if (!value) {
        if (!optional && states_in(item) != 0) say_missing(item, label("state", item.index, text));
        value = tensor ? tensors().attr("number")(initial) : py::object(py::int_(std::int64_t(initial)));
        additions_.push_back({k, name, value});
      }
      look_at_number(cell, std::move(value), label("state", item.index, text));
    };
    item.step = 1;
    if (counts(settings) || value_of(item, names().step)) {
      collect(cells.step, names().step, "step", 0.0, counts_ != Counts::number, counts_ == Counts::where_needed);
      const double taken = cells.step.value();
      if (!(taken >= 0.0) || taken != std::floor(taken) || taken >= 0x1p53) {
        value_error(label("state", item.index, "step"), "expected a whole number >= 0, got " + shown(cells.step.owner));
      }
      item.step = std::int64_t(taken) + 1;
      // States that were made and not stepped are as fresh as none.
      item.first = item.first || taken == 0.0;
    }
    if (rule.shared_scalars) return;
    for (int s = 0; s < engine_.scalars(); ++s) {
      collect(cells.scalars[s], scalar_names_[std::size_t(s)], rule.scalars[std::size_t(s)],
              rule.initial_scalar(settings.hypers, s), true, false);
      item.scalars[s] = cells.scalars[s].value();
    }
  }

  void look_at_number(Cell& cell, py::object value, const Label& label) {
    cell.owner = std::move(value);
    dlpack::Tensor tensor = {};
    const py::handle owner = cell.owner;
    if (PyFloat_Check(owner.ptr()) || (PyLong_Check(owner.ptr()) && !PyBool_Check(owner.ptr()))) return;
    if (!read_by_table(owner, tensor)) {
      const py::object array = bind::view(tensors().attr("local")(owner, label.text()), label);
      held_.push_back(array);
      point(cell, array, label);
      return;
    }
    std::int64_t count = 1;
    for (int i = 0; i < tensor.ndim; ++i) count *= tensor.shape[i];
    const bool real = tensor.code == dlpack::kFloat && tensor.lanes == 1 && (tensor.bits == 32 || tensor.bits == 64);
    void* data = const_cast<char*>(start_of(tensor));
    // Not shown: PyTorch itself would read it.
    if (count == 1 && data == nullptr)
      value_error(label, "its storage is smaller than its shape: it was resized or freed");
    if (!real || count != 1 || data == nullptr || reinterpret_cast<std::uintptr_t>(data) % (tensor.bits / 8) != 0) {
      type_error(label, "expected a float32 tensor of one number, got " + shown(owner));
    }
    if (tensor.bits == 32) cell.single = static_cast<float*>(data);
    if (tensor.bits == 64) cell.wide = static_cast<double*>(data);
    note(cell.owner);
  }

  static void point(Cell& cell, py::handle array, const Label& label) {
    const Array found = inspect(array, label);
    if (found.size != 1) type_error(label, "expected a tensor of one number, got shape " + shape_text(array));
    if (found.dtype == Dtype::float32) cell.single = reinterpret_cast<float*>(found.data);
    if (found.dtype == Dtype::float64) cell.wide = reinterpret_cast<double*>(found.data);
  }

  // They stand in the groups, the same in all; the first one's hold.
  void read_shared() {
    if (!engine_.rule().shared_scalars) return;
    for (int s = 0; s < engine_.scalars(); ++s) {
      const char* name = engine_.rule().scalars[std::size_t(s)];
      const py::handle given = get(PyList_GET_ITEM(groups_.ptr(), 0), scalar_names_[std::size_t(s)]);
      shared_[s] =
          given && !given.is_none() ? number(given, name) : engine_.rule().initial_scalar(settings_[0].hypers, s);
    }
  }

  void enter_new(Ledger& ledger) {
    for (const Addition& addition : additions_) {
      Item& item = items_[addition.item];
      if (!item.entry) {
        item.entry = py::dict();
        ledger.put(state_, item.owner, item.entry);
      }
      ledger.put(item.entry, addition.name, addition.value);
    }
  }

  // What the state and the groups hold after this step, but for what is in tensors.
  void enter(Ledger& ledger) {
    enter_new(ledger);
    for (std::size_t k = 0; k < items_.size(); ++k) {
      const Item& item = items_[k];
      const auto put = [&](const Cell& cell, py::handle name, const py::object& value) {
        if (cell.owner && !cell.is_tensor()) ledger.put(item.entry, name, value);
      };
      put(cells_[k].step, names().step, py::int_(item.step));
      for (int s = 0; s < engine_.scalars(); ++s) {
        put(cells_[k].scalars[s], scalar_names_[std::size_t(s)], py::float_(item.advanced[s]));
      }
    }
    enter_shared(ledger);
  }

  void enter_shared(Ledger& ledger) {
    if (!engine_.rule().shared_scalars) return;
    for (const py::handle group : py::reinterpret_borrow<py::list>(groups_)) {
      for (int s = 0; s < engine_.scalars(); ++s) {
        ledger.put(group, scalar_names_[std::size_t(s)], py::float_(shared_[s]));
      }
    }
  }

  void advance() noexcept {
    for (std::size_t k = 0; k < items_.size(); ++k) {
      cells_[k].step.set(double(items_[k].step));
      for (int s = 0; s < engine_.scalars(); ++s) cells_[k].scalars[s].set(items_[k].advanced[s]);
    }
  }

  Engine engine_;
  Counts counts_;
  py::object groups_, state_, written_;
  std::vector<py::object> held_;
  bool busy_ = false;
  bool makes_ = true;  // what states lack
  std::int64_t taken_ = 0;
  // Of the last step.
  Outcome outcome_;
  std::vector<double> lrs_;
  bool clips_ = false;
  std::vector<Item> reported_;
  std::vector<py::object> state_names_, scales_names_, scalar_names_;
  double shared_[kMaxScalars] = {};
  // Reused from step to step.
  std::vector<Shells> shells_;
  std::vector<Settings> settings_;
  std::vector<Item> items_;
  std::vector<Cells> cells_;
  std::vector<Addition> additions_;
};

}  // namespace

void register_tensors(py::module_& m) {
  py::class_<TensorStep>(m, "TensorStep", py::is_final(), whole_from_birth())
      .def(py::init<const std::string&, const std::string&>())
      .def("step", &TensorStep::step, py::arg("groups"), py::arg("state"), py::arg("grad_scale"),
           py::arg("parts") = py::none(), py::arg("add") = py::none(), py::arg("measured") = py::none())
      .def("begin", &TensorStep::begin)
      .def("check_step", &TensorStep::check_step)
      .def("refuse_overlaps", &TensorStep::refuse_overlaps)
      .def("measure", &TensorStep::measure, py::arg("groups"), py::arg("before") = py::none())
      .def_property_readonly("report", &TensorStep::report)
      .def_property("taken", &TensorStep::taken, &TensorStep::set_taken)
      .def("check", &TensorStep::check);
}

}  // namespace fusedstep::bind
