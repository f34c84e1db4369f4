"""The five verbs beneath botocore: a small HTTP/1.1 client, SigV4, and two codecs for the calls made all day."""
