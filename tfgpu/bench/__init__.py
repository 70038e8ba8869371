"""Measures where a training's time goes, and what would save some of it.

`ceilings` measures the machine, `factors` says what is compared, `trial` trains it in processes
that `contest` holds and times in turn, `verdict` judges the timings, `report` and `plots` show
them, and `session` is the whole.
"""
