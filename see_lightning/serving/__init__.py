"""A server that routes: the queries of many clients in one batch, and the OpenAI API around it."""
