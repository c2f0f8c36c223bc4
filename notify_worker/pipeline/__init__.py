"""What a worker does with a notification: claim, render, send, record."""
