"""The parts that criteria are made of: formulas, hooks, accumulators, and which layers read which channels."""
