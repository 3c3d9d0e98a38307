"""Models whose `get_image_features` keeps only the visual tokens that the pruning method selects."""
