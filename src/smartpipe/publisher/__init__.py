"""From events to the requests that publish them."""
