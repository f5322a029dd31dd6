"""What the user sees: tables, files, and what goes to the progress bar and the loggers."""
