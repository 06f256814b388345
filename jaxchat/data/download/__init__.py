"""Files from the network: resumed, checked, cached, and found by dataset."""
