"""What serves an array: one module for each kind, each importing its framework inside its functions."""
