"""What a run will need, before it is paid for: devices that are described, programs compiled for them, an estimate."""
