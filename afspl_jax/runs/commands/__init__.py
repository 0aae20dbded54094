"""The commands of `afspl`: a module for each group."""
