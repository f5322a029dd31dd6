"""Everything that speaks to a Trainer: the callback, what it does in which hook, and what a fit reports."""
