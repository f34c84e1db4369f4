"""From events to requests: gathered, cut to size, sent, and sent again."""
