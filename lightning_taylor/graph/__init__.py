"""What belongs together: the provenance trace, the rules of the operators, the groups, and their proof."""
