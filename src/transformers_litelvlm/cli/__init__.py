"""The command `litelvlm`: one file per sub-command."""
