"""A BERT in Flax NNX that sorts texts into classes."""
