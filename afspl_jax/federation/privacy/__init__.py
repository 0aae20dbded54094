"""Differential privacy: clipping, noise, and the account of what was spent.

docs/security.md says who is protected from whom, and under which assumptions.
"""
