"""Find what goes together: follow labels through the program, tie them, and prove what can be removed."""
