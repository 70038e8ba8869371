"""`tfgpu report`: one HTML file about a run, or about several side by side."""
