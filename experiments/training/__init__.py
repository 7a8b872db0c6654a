"""One run: its settings, its loop, and what it leaves behind."""
