"""`litelvlm demo`: a page in the browser that compares masks with and without pruning."""
