"""From the streams to a posted and published batch."""
