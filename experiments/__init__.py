"""Language-model experiments with fira_jax: models, data, training and evaluation."""
