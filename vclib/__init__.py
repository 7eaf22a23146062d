"""Helpers of the executable book *Vanishing Curvature*; the page "API" of the book describes every module."""

import os

# Torch's threads spin while they wait for work, by default for so long that on a busy machine small matrix products
# can take a hundred times longer. Threads that sleep at once make them three times slower on a quiet one. A short spin
# costs nothing there, and little on a busy one. GNU's OpenMP reads this when torch is imported for the first time.
os.environ.setdefault("GOMP_SPINCOUNT", "3000")
