"""Functional model builders, one file a family.

A builder takes `image_shape` and `num_classes` by keyword, and `width` and `depth` where it
has use for them, and returns a
`tfgpu.Model` that maps raw pixels, (batch, height, width, channels) in 0 to 255,
to float32 logits of shape (batch, num_classes).
"""
