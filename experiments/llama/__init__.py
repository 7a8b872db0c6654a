"""The model: LLaMA in Flax NNX, and what its layers may be made of."""
