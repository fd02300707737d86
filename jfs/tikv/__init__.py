"""A client of TiKV: transactions on an ordered key-value store that is spread over many servers."""
