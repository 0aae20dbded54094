"""Flags of XLA for models that compile for longer than they run."""

# Fusion emitters triple the time of a compile and speed up nothing of this size; splitting the code
# of a program pays with idle cores only.
QUICK_COMPILE = "--xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1"
