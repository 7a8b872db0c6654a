"""Language-model experiments with fira_jax: models, data, training and evaluation."""

import os

# LAPACK's threads wait for each other, and on a CPU that is busy (with XLA's, say) for long: see
# benchmarks/lapack_threads.py. Only a large SVD is faster with more of them. Read when LAPACK is
# loaded, so it stands before anything else.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
