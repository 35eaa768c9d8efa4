"""What mixers of softmax attention share: windows, scores and values, the cache of past tokens."""
