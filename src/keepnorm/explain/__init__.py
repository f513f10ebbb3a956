"""What a choice of kept axes means, in words, in code of each framework, and in pictures."""
