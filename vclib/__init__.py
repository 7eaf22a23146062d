"""Helpers of the executable book *Vanishing Curvature*; the page "API" of the book describes every module."""
