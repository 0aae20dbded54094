"""Differential privacy: noise, bounds on what one client or example can do, and what was spent.

docs/security.md says which promise is made to whom, and what it rests on.
"""
