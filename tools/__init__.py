"""What helps to work on this repository."""
