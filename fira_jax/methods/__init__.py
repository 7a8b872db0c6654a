"""The published methods, one file each; all are at the top of :mod:`fira_jax`."""
