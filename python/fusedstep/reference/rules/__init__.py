"""The equations of the optimizers: one module a rule, each beside its `cpp/rules/NAME.h`.

`h` holds the hyper-parameters, `c` the coefficients in the dtype of the arithmetic, `g` the gradient after its stage,
`p` the parameter; states follow, None where these hyper-parameters need none. A module has

- `coefficients(h, step, first)`: the coefficients of a step, in double; `first` says that the states are fresh. A rule
  with numbers that go on from step to step takes them as a fourth argument, `scalars`, and updates them;
- `direction(h, c, g, p, *states)`: updates the states and returns what the step takes off the parameter after its decay
  (`c.keep`). Or `update(h, c, g, p, *states)`, where the rule is not of that form: it updates the parameter too;
- `starts`: what states and scalars hold before the first step, where that is not 0 (nor, as C++ says in `copies`, the
  parameter): a number, or the name of a hyper-parameter.

Where a rule needs sums over whole tensors first, it also has

- `measure(h, c, g, p, *states)`: the sums, as pairs of arrays whose products are added up. The states are copies;
- `norms`: True where the roots of these sums are what follows;
- `weigh(h, step, shared, sums)` and `share(h, totals, shared)`, for scalars that all tensors share: the first makes the
  sums of one tensor what it adds to the totals, the second updates the scalars with these;
- `settle(h, sums, shared)`: the coefficients that follow.
"""

import importlib
import pkgutil
from types import ModuleType

#: Every module of this package, by its name, which is the rule's.
RULES: dict[str, ModuleType] = {
    module.name: importlib.import_module(f"{__name__}.{module.name}") for module in pkgutil.iter_modules(__path__)
}
