"""The ordered key-value storage model and its engines."""
