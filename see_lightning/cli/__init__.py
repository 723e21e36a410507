"""The command line: one module for each verb of ``see-lightning``, and the table of verbs in ``verbs``."""
