"""The state of kept cells: its parts, and what is done to it; people use it as keepnorm.Moments."""
