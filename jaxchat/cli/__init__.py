"""The command `jaxchat`: arguments, and what is printed."""
