"""Continual-learning methods: one module each, with a YAML of the same name in conf/method."""
