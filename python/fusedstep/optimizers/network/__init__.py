"""Muon for a whole network: hidden weights by Muon, all other parameters by AdamW.

`choice` says which are hidden weights; `optimizer` has the two optimizers behind one.
"""

from fusedstep.optimizers.network.choice import is_at_an_end, is_network

__all__ = ["is_at_an_end", "is_network"]
