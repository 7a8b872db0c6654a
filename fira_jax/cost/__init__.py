"""What a transformation does to every parameter, and what a step will take."""
