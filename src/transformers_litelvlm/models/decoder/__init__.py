"""Methods that prune inside the language model: the loop over its layers, evidence, caches."""
