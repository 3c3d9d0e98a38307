"""What a model and data say about pruning: where referent tokens stand, and what the language model looks at."""
