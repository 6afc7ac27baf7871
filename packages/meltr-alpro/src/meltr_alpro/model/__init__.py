"""The ALPRO model: sizes, video encoder, text encoder and fusion, heads, prompter, scoring."""
