"""One module per published checkpoint, or per part that several of them share."""
