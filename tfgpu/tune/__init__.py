"""The search for better settings: `tfgpu tune`.

One process, the chief, holds KerasTuner's oracle and hands out trials over KerasTuner's own
protocol; worker processes train them, each trial as a run in a directory of its own.
"""
