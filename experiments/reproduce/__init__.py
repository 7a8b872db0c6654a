"""Every method in one table, at a scale that a laptop can run."""
