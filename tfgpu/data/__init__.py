"""Labelled images: where they come from, and random access to them."""
