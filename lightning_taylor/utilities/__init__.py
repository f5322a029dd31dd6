"""Small helpers with names that are searched for; they know nothing of channels."""
