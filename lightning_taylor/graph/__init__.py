"""Plain data: channels, the groups that they form, the graph of a model, and how it is written down."""
