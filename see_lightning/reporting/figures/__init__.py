"""The figures of SEE's paper, drawn from what runs left on disk: no model, no torch.

One module for each: scores by task after the last one (its figure 3), the perplexity of reference answers (figure 5), and the
latency of asking experts; besides, what experts score on each other's tasks, and what is kept. Standalone files on a white
ground; beside each picture goes a table with every number in it.
"""
