"""The first-party backends. Each is loaded through its entry point; nothing imports them by name."""
