"""Several processes that train together: who they are, how they meet, and what they agree on.

TensorFlow's collectives carry gradients and nothing else goes through them. The rest (who is
there, settings that have to be equal, checkpoints, when to stop, who was lost) goes over one TCP
connection from each worker to the chief, which `rendezvous` makes and `membership` keeps.
"""
