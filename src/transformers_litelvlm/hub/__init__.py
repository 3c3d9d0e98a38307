"""What stands beside the weights on the Hub."""
