"""Experts around the base model, and the walk that finds who answers."""
