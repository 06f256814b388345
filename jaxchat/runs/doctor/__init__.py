"""What `jaxchat doctor` finds: this machine, and whether a tier can run on it."""
