"""The update inside the backward pass, so that no gradient of the whole model exists."""
