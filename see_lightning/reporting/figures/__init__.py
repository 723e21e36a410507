"""The figures of SEE's paper, drawn from the files of runs: no model, no torch.

A module for each: scores by task after the last one (its figure 3), the perplexity of reference answers (figure 5), and the
latency of routing; in addition, transfer between experts and tasks, storage, and the scores of many methods over what they
keep. Each figure is a standalone SVG file on a white background, with a CSV file of its numbers.
"""
