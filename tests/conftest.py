"""What holds for every test."""

import os

# Before torch is imported: on a busy machine threads that wait for one another at each small operation take ten times as
# long as one thread, and the tests' models are small. Subprocesses inherit it.
os.environ.setdefault("OMP_NUM_THREADS", "1")
