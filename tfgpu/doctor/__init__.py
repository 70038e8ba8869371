"""The diagnosis of a machine: what keeps a training from starting, or from using the GPU.

`driver`, `libraries` and `framework` ask and return plain data; the modules `*_checks` turn it into
`findings`; `probe` tries out combinations of settings.
"""
