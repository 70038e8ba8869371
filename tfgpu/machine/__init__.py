"""The machine: devices, strategy, cluster, hardware, peak rate, FLOPs."""
