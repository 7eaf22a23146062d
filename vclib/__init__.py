"""Helpers of the executable book *Vanishing Curvature*; the page "API" of the book describes every module."""

import os

# torch's threads spin while they wait. On a busy machine with few cores that makes small matrix products up to ten
# times slower, so let them sleep. It counts only before torch is imported for the first time.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
