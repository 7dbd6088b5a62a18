"""Ways to make one gradient of those of a loss's terms, over the same budget."""
