"""The equations of the optimizers: one module per rule, each beside its `cpp/rules/NAME.h`.

`h` holds the hyper-parameters, `c` the coefficients in the dtype of the arithmetic, `g` the gradient after its stage,
`p` the parameter; states follow, None for a state that these hyper-parameters do not need. A module has

- `coefficients(h, step, first)`: the coefficients of a step, in double; `first` says that the states are fresh. A rule
  with numbers that go on from step to step takes them as a fourth argument, `scalars`, and updates them;
- `direction(h, c, g, p, *states)`: updates the states and returns what the step subtracts from the parameter after its
  decay (`c.keep`). A rule of another form has `update(h, c, g, p, *states)`, which updates the parameter too;
- `starts`: the values of states and scalars before the first step, if they are not 0 (nor, as C++ says in `copies`, the
  parameter): a number, or the name of a hyper-parameter.

A rule that first needs sums over whole tensors also has

- `measure(h, c, g, p, *states)`: the sums, as pairs of arrays whose products are added up. The states are copies;
- `norms`: True if it needs the roots of these sums;
- `weigh(h, step, shared, sums)` and `share(h, totals, shared)`, for scalars that all tensors share: the first turns the
  sums of one tensor into its part of the totals, the second updates the scalars with the totals;
- `settle(h, sums, shared)`: the coefficients that depend on the sums.
"""

import importlib
import pkgutil
from types import ModuleType

#: Every module of this package, by its name, which is the rule's.
RULES: dict[str, ModuleType] = {
    module.name: importlib.import_module(f"{__name__}.{module.name}") for module in pkgutil.iter_modules(__path__)
}
