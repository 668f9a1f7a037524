"""Streams of text that last: opened, saved, forked, rewound."""
