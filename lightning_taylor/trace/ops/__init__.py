"""The rules of the operators, one family a file; ``table`` lists them."""
