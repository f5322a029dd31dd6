"""The rules of a criterion, each with the test of it; ``criteria.check`` runs them all."""
