"""How much a channel matters: formulas, their accumulation, and the hooks that feed them."""
