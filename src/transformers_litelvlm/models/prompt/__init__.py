"""The pruned prompt: what a language model is given when visual tokens are left out."""
