"""Files on disk: safe reading, decoding, atomic writing, and checks of the form of a run's files."""
