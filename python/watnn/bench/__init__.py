"""What the layers cost, against what: the suites of `watnn bench`. Needs the extra wat-kernels[bench].

case       what a suite hands to the runner: cases, contenders, runs
suites/    one file a suite; each lists its cases
networks/  whole networks, and network their contenders
runner     checks, times and weighs the contenders of a case; yields rows
timing, limits, memory, verify, official    what the rows are made of
rows, store, bars, table, figures           what is made of the rows
"""
