"""Everything that only a GPU can show: `python -m benchmarks.gpu_check`, on a machine that is lent for minutes.

A stage (`stages.py`) is a process of its own with a time limit, and a list of steps; a step ends in findings, which are on
disk as soon as they are found. A step that crashes or hangs is one failed finding, and its stage goes on with the next step
in another process.

    command.py   arguments, the order of things, the exit status
    process.py   runs one stage: limits, restarts, logs
    report.py    steps and findings
    place.py     where the kernels run: a GPU, or in a rehearsal the CPU
    <stage>.py   its steps
    summary.py   what it all says, in at most 80 lines
"""
