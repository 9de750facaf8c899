"""The network: shape, decoder, reward and value heads, and the Hugging Face folder it is saved in."""
