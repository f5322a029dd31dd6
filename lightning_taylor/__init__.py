"""Prune convolutional networks while they train, by first-order Taylor scores."""
