"""What a trace learns beside plain ties: grids, numbers that count channels, products, and statistics."""
