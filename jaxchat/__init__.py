"""jaxchat: train your own ChatGPT in JAX, from raw text to a chat."""

__version__ = "0.1.0"
