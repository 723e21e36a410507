"""Merging of task vectors, the changes that training made to a base model's weights, into one."""
