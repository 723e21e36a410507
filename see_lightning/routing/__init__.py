"""Routers choose the expert that answers a query. A router is a file here and a YAML file in ``conf/router``."""
