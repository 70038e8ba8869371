"""What this machine has, what of it TensorFlow can use, and how to mend the rest.

`driver`, `libraries` and `framework` ask and return plain data; `checks` judges that data and
asks nothing of a GPU itself; `probe` tries the combinations out.
"""
