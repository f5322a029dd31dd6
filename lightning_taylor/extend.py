"""What adds to the package from outside: a criterion, the rule of an operator, the attributes of a module of your own.

``check_criterion`` runs every rule that a criterion has to keep, and names those that it breaks.

A rule author needs ``Call`` and ``Labels`` (what a rule gets and returns), the three helpers that say what a parameter
does with channels (``tie_vector``, ``consume_channels``, ``produce_channels``), and ready rules for operators that do
what many do: ``pointwise`` (operands of one shape, element by element), ``per_map`` (pooling, resizing: each feature
map on its own) and ``freeze_all`` (nothing can be removed around it; with a reason of your own).

Example:
    >>> import torch
    >>> from lightning_taylor import trace_channels
    >>> from lightning_taylor.extend import pointwise, register_rule, unregister_rule
    >>> @torch.library.custom_op("docs::twice", mutates_args=())
    ... def twice(x: torch.Tensor) -> torch.Tensor:
    ...     return 2 * x
    >>> class Net(torch.nn.Sequential):
    ...     def forward(self, x):
    ...         return self[1](twice(self[0](x)))
    >>> net = Net(torch.nn.Linear(4, 8), torch.nn.Linear(8, 2))
    >>> trace_channels(net, torch.rand(1, 4)).frozen["0"]
    'no rule for twice in the model itself'
    >>> _ = register_rule(twice)(pointwise)
    >>> trace_channels(net, torch.rand(1, 4)).groups["0"].size
    8
    >>> unregister_rule(twice)
"""

from lightning_taylor.criteria.check import check_criterion
from lightning_taylor.modules.attributes import register_attributes
from lightning_taylor.trace.labels import Labels
from lightning_taylor.trace.ops.custom import consume_channels, produce_channels, tie_vector
from lightning_taylor.trace.ops.pointwise import freeze_all, pointwise
from lightning_taylor.trace.ops.reduction import per_map
from lightning_taylor.trace.ops.table import register_rule, unregister_rule
from lightning_taylor.trace.state import Call

__all__ = [
    "Call",
    "Labels",
    "check_criterion",
    "consume_channels",
    "freeze_all",
    "per_map",
    "pointwise",
    "produce_channels",
    "register_attributes",
    "register_rule",
    "tie_vector",
    "unregister_rule",
]
