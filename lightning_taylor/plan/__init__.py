"""What goes when: costs, targets, schedules, the selection, and the record of events."""
