"""What the package knows about modules: their attributes, their sizes, copies of models, attention classes."""
