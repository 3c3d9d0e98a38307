"""`litelvlm serve`: masks over HTTP. Nothing here is imported unless a server starts."""
