"""Cutting channels out of a living model and its optimizers, all or nothing."""
