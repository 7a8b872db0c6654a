"""Many devices: how state is split, and meshes with explicit axes."""
