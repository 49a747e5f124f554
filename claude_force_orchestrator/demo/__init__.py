"""The demonstration: a batch of real tasks, asked twice, with the API's own count of what reached it."""
