"""The relational storage model and its engines."""
