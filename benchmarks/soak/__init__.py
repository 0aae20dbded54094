"""A federation under load: processes are killed and stopped, lines are slow, and nothing may break.

`python -m benchmarks.soak` starts a server and its sites as operators do (federation.py), each site
behind a slow line (proxy.py), and disturbs them by a schedule that a seed decides (schedule.py).
Afterwards it compares the result with a run in one process that was told which replies counted
(replay.py), and looks for what is left over (processes.py, files.py).
"""
