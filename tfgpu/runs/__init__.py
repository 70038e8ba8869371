"""`tfgpu runs`: lists run directories, and says in which settings they differ."""
