"""The benchmark of a training: where its time goes, and what would save some of it.

`run` is the whole. `ceilings` measures the machine, `factors` plans what is compared, `trial`
trains it in processes that `interleaved_timing` starts and times, `verdict` judges the timings,
`report` and `plots` show them.
"""
