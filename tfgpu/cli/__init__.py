"""What all commands share: entry, flags and settings, console, start-up, interrupts."""
