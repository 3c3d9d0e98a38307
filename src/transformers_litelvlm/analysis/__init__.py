"""Evidence on a model and data: where referent tokens stand, what the language model looks at, what selection gains."""
