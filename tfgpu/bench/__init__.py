"""The benchmark of a training: where its time goes, and what would save some of it.

`run` is the whole. `factors` plans what is compared; in processes of their own (`process`), which
`interleaved_timing` starts and times, `ceilings` measures the machine and `trial` trains, also
layer by layer (`layers`); `verdict` judges the timings, `report` and `plots` show them.
"""
