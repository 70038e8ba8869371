"""What a command leaves behind: the run directory, atomic files, the environment record."""
